"""The page: contents, safety, size, and that the same run gives the same bytes."""

from __future__ import annotations

import builtins
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from report_runs import EVALUATION, EXAMPLES, INFO, PEAK, STEPS, STEPS_TODAY, long_run, write_run

from corebatch.errors import CorebatchError, DataError
from corebatch.report import MissingExtraError, read_run, summarise, write_report

EVIL = '<script>alert("1")</script>'
STATE = {"global_step": 2, "log_history": [{"step": s, "eval_loss": 2.0 / s} for s in (1, 2)]}


class Outline(HTMLParser):
    """Collects tags, ids and attributes, and checks that elements are closed in order."""

    VOID = ("meta", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def ids(self) -> list[str]:
        return [value for name, value in self.attributes if name == "id"]


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", evaluation=EVALUATION, trainer_state=STATE)


def text_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def test_the_page_tells_the_numbers(full: Path) -> None:
    text = text_of(full)
    assert write_report(full) == full / "report.html"
    assert "<h1>Held-out loss fell from 2.000 to 1.000 nats per token.</h1>" in text
    assert "<dt>How</dt><dd>At each of 2 steps 4 of 8 examples were chosen and trained on. " in text
    assert "<dd>75.0 %</dd>" in text  # of answers right, a tile
    for number in ("16 drawn, 8 trained", "87.5 %", "75.0 %", "2.000", "30.1–95.4", "learning_<wbr>rate"):  # noqa: RUF001
        assert number in text
    for title in ("Loss", "Held-out data", "Sources", "Time, memory and tokens", "Weights", "Settings"):
        assert f"<h2>{title}</h2>" in text
    assert text.index("<h2>Held-out data</h2>") < text.index("<h2>Loss</h2>")
    folded = text[text.index("<details><summary>The run, its settings") :]
    assert "learning_<wbr>rate" in folded[: folded.index("</details>")]
    assert "Weights undo the choice." in text
    # the loss twice, one drawing for each other chart, and one for each of three sources over time
    assert text.count("<svg ") == 15


def test_the_page_tells_padding_utilisation_and_communication(tmp_path: Path) -> None:
    text = text_of(write_run(tmp_path, STEPS_TODAY, corebatch={**INFO, "peak_flops": PEAK}))
    shown = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    for number in ("33.3 %", "20.0 %", "MFU 40.0 %", "160 GFLOP/s", "12.5 MB", "communication", "full (1 step)"):
        assert number in shown
    assert "exchange" not in shown
    assert "Peak memory by phase (MB, highest of all steps)" in shown
    assert Outline(text).open == []


def shown(text: str) -> str:
    return re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_the_page_tells_the_gradient_error_and_what_it_cost(tmp_path: Path) -> None:
    steps = [{**STEPS_TODAY[0], "ms": {**STEPS_TODAY[0]["ms"], "track": 450.0}}, STEPS_TODAY[1]]
    text = shown(text_of(write_run(tmp_path, steps)))
    assert "<h2>Gradient error</h2>" in text
    assert "Measured at 1 step; 450 ms each, 9.1 % of the time of all phases." in text
    assert "The squared error is 0.25 of that of random rows." in text
    assert "0.40 of the large batch&#x27;s length on average, random rows 0.80 (on 1 step)" in text
    for row in ("<td>0.400</td><td>0.950</td><td>1.100</td>", "<td>0.800</td><td>0.700</td><td>1.500</td>"):
        assert row in text
    assert ">tracking<" in text
    assert "<h2>Gradient error</h2>" not in text_of(write_run(tmp_path / "without", STEPS))


def test_the_page_shows_the_noise_scale_beside_the_rows_of_a_step(tmp_path: Path) -> None:
    scales = [12.5, None, 14.0]
    steps = [{**STEPS_TODAY[0], "step": n, "noise_scale": scale} for n, scale in enumerate(scales, 1)]
    text = shown(text_of(write_run(tmp_path, steps)))
    assert (
        text.count("<h2>Noise of the gradient</h2>")
        == text.count('aria-label="Noise scale of the gradient (rows)')
        == 1
    )
    assert "rows of a step" in text
    assert "Noise of the gradient" not in text_of(write_run(tmp_path / "without", STEPS_TODAY))


def test_the_page_shows_the_pool_the_chosen_and_the_weights_of_each_source(tmp_path: Path) -> None:
    text = shown(text_of(write_run(tmp_path, STEPS_TODAY)))
    assert "share by weight" in text
    assert "<td>87.5 %</td>" in text  # 7 of 8 in the weights
    panels = re.findall(r'aria-label="(Share of [^"]*)"', text)
    assert panels == [f"Share of {name} over the steps: pool, chosen, chosen, by weight" for name in INFO["sources"]]
    uniform = [{**step, "weight_max": 1.0} for step in STEPS_TODAY]
    text = shown(text_of(write_run(tmp_path / "uniform", uniform)))
    assert "by weight" not in text
    assert "Share of algebra over the steps: pool, chosen&quot;" not in text
    assert 'aria-label="Share of algebra over the steps: pool, chosen"' in text


def test_the_page_shows_the_shares_of_an_online_objective(tmp_path: Path) -> None:
    title = "Share of each source in the objective"
    steps = [{**step, "shares": {"algebra": 0.75, "tiny": 0.25}} for step in STEPS_TODAY]
    for pooled in (steps, [{**step, "chosen": step["drawn"], "chosen_examples": 8} for step in steps]):
        text = shown(text_of(write_run(tmp_path / str(pooled is steps), pooled)))
        assert text.index("<h2>Sources</h2>") < text.index(title)
    assert title not in text_of(write_run(tmp_path / "without", STEPS_TODAY))


def test_the_page_shows_examples_with_their_texts(tmp_path: Path) -> None:
    text = shown(text_of(write_run(tmp_path, STEPS_TODAY, examples=EXAMPLES)))
    assert "12 examples of the 1,000 of the train set were drawn, each 1 to 2 times." in text
    assert "Never chosen: 5 of 12 examples drawn (at random about 4.5)." in text
    assert "algebra · example 7 · chosen 2 of 2 times (at random 1.0), mean weight 0.51" in text
    assert "<p class='text'>Two &amp; two</p>" in text
    assert "(its text was not stored)" in text
    assert text.index("Chosen most often") < text.index("Two &amp; two") < text.index("Chosen least often")
    once = {**EXAMPLES, "draws": [1, 1], "ranked_by": "weight", "steps": 1}
    text = shown(text_of(write_run(tmp_path / "once", STEPS_TODAY, examples=once)))
    assert "Chosen with the smallest weights" in text
    assert "Counted over the last 1 steps alone" in text
    nothing = {**EXAMPLES, "ranked_by": None, "most": [], "least": []}
    text = shown(text_of(write_run(tmp_path / "nothing", STEPS_TODAY, examples=nothing)))
    assert "Never chosen: 5 of 12" in text
    assert "Chosen most often" not in text


def test_examples_are_chats_with_what_is_trained_marked(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "text": "Two & two?", "trained": False},
        {"role": "assistant", "text": "Four", "trained": True},
        {"role": "", "text": "(3 turns are left out here)", "trained": None},
    ]
    entry = {**EXAMPLES["most"][0], "turns": turns}
    text = shown(text_of(write_run(tmp_path, STEPS_TODAY, examples={**EXAMPLES, "most": [entry]})))
    assert "<div><p class='role'>user</p><p class='text'>Two &amp; two?</p></div>" in text
    assert "<div class=\"trained\"><p class='role'>assistant · trained</p><p class='text'>Four</p></div>" in text
    assert "<div><p class='text'>(3 turns are left out here)</p></div>" in text
    assert "What is trained of an example is marked by a green bar." in text
    assert "green bar" not in text_of(write_run(tmp_path / "older", STEPS_TODAY, examples=EXAMPLES))
    assert "more</summary>" not in text
    five = {**EXAMPLES, "most": [{**entry, "id": number} for number in range(5)]}
    five_of = shown(text_of(write_run(tmp_path / "five", STEPS_TODAY, examples=five)))
    folded = five_of[five_of.index("<details><summary>2 more</summary>") :]
    assert folded.index("example 3 ·") < folded.index("example 4 ·") < folded.index("</details>")
    assert Outline(five_of).open == []
    assert Outline(text).open == []


def test_the_page_ends_with_the_commands_that_go_on(tmp_path: Path) -> None:
    commands = [{"what": "Train & see.", "command": "corebatch train '[a.jsonl]'"}]
    text = shown(text_of(write_run(tmp_path, next={"commands": commands})))
    end = text[text.index("<h2>Next</h2>") :]
    assert "Train &amp; see.</p>\n<pre>corebatch train &#x27;[a.jsonl]&#x27;</pre>" in end
    assert "<h2>" not in end[1:].replace("h2>Next</h2>", "")
    assert "<h2>Next</h2>" not in text_of(write_run(tmp_path / "without"))
    with pytest.raises(DataError, match=r"next\.json: commands\[0\]: field 'command' is missing"):
        write_report(write_run(tmp_path / "broken", next={"commands": [{"what": "x"}]}))


def test_examples_of_another_state_of_the_run_are_left_out(tmp_path: Path) -> None:
    text = text_of(write_run(tmp_path, STEPS_TODAY, examples={**EXAMPLES, "last_step": 9}))
    assert "examples.json ends at step 9, not at 2, and was left out." in text
    assert "<h2>Examples</h2>" not in text
    folder = write_run(tmp_path / "killed", STEPS_TODAY)
    (folder / "chosen.jsonl").write_text("")
    assert "examples.json is missing: it is written when training ends." in text_of(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"most": {}}, r"field 'most' should be a list\. Found \{\}"),
        ({"most": [3]}, r"most: should be a JSON object\. Found 3"),
        ({"never_chosen": -1}, r"field 'never_chosen' should be a whole number"),
        ({"draws": ["a"]}, r"draws.* should be a whole number"),
    ],
)
def test_broken_examples_are_told(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_report(write_run(tmp_path, STEPS_TODAY, examples={**EXAMPLES, **change}))


def test_the_page_names_both_commits(tmp_path: Path) -> None:
    info = {**INFO, "commit": "0123456789ab+", "corebatch_commit": "ba9876543210"}
    text = text_of(write_run(tmp_path, corebatch=info))
    assert "0123456789ab+" in text
    assert "ba9876543210" in text


def test_five_thousand_steps_of_fourteen_sources_take_less_than_five_megabytes(tmp_path: Path) -> None:
    steps = long_run(5000, [f"source number {i} with a long name" for i in range(14)])
    found = STEPS_TODAY[0]["gradient_error"]
    steps = [step | ({"gradient_error": found} if step["step"] % 10 == 0 else {}) for step in steps]
    entries = {key: EXAMPLES[key] * 10 for key in ("most", "least")}
    folder = write_run(tmp_path, steps, examples={**EXAMPLES, **entries, "last_step": 5000}, evaluation=EVALUATION)
    path = write_report(folder)
    assert path.stat().st_size < 5_000_000
    assert path.stat().st_size < 1_000_000  # what it is today; a chart that grows with the steps would show
    text = path.read_text(encoding="utf-8")
    assert text.count('aria-label="Share of source number') == 14
    assert Outline(text).open == []


def test_the_page_is_well_formed_with_unique_ids(full: Path) -> None:
    outline = Outline(text_of(full))
    assert outline.open == []
    ids = outline.ids()
    assert len(ids) == len(set(ids))
    used = [v for n, v in outline.attributes if n in ("href", "clip-path")]
    assert {re.sub(r"url\(#|#|\)", "", value) for value in used} <= set(ids)


def test_the_page_needs_no_network_and_no_script(full: Path) -> None:
    text = text_of(full)
    for reference in ("http:", "https:", "//", "@import", "url(h", "src=", "javascript"):
        assert reference not in text
    assert re.findall(r"<script[^>]*>", text) == ['<script type="application/json" id="summary">']


def test_colours_of_drawings_follow_the_theme(full: Path) -> None:
    text = text_of(full)
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", drawings) == []
    used, style = set(re.findall(r"var\((--\w+)\)", text)), text[: text.index("</style>")]
    for name in used - {"--key"}:
        assert style.count(f"{name}:") == 2, name  # once for light, once for dark
    assert "font-family" not in drawings


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    steps = long_run(4, [EVIL, "$x^2$ & \\frac", "</svg>", "数学", "a\ud800b"])
    info = {**INFO, "model": EVIL, "coreset": {EVIL: EVIL, "selector": EVIL}, "method_note": EVIL}
    scores = {"after": {"per_source": {EVIL: {"correct": 1, "total": 2}}}}
    state = {"global_step": 1, "log_history": [{"step": 1, f"eval_{EVIL}_loss": 1.0}]}
    entry = {**EXAMPLES["most"][0], "source": EVIL, "text": EVIL}
    examples = {**EXAMPLES, "last_step": 4, "most": [entry], "least": [entry]}
    folder = write_run(tmp_path, steps, corebatch=info, evaluation=scores, trainer_state=state, examples=examples)
    text = text_of(folder)
    assert EVIL not in text
    assert html.escape(EVIL) in text
    assert "数学" in text
    outline = Outline(text)
    assert outline.tags.count("script") == 1
    assert outline.open == []
    embedded = re.search(r'id="summary">(.*?)</script>', text)
    assert embedded is not None
    assert json.loads(embedded[1]) == summarise(read_run(folder)).to_dict()


def test_the_same_run_gives_the_same_bytes_whatever_the_settings(full: Path, tmp_path: Path) -> None:
    first = write_report(full).read_bytes()
    copy = shutil.copytree(full, tmp_path / "elsewhere" / "run")
    with mpl.rc_context({"axes.grid": True, "font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path"}):
        before = dict(mpl.rcParams)
        assert write_report(copy).read_bytes() == first
        assert dict(mpl.rcParams) == before


def test_a_long_run_of_many_sources_stays_small(tmp_path: Path) -> None:
    sources = [f"source number {i} with a rather long name" for i in range(800)]
    steps = long_run(30, sources) + [{**step, "step": step["step"] + 30} for step in long_run(3000, ["a", "b"])]
    path = write_report(write_run(tmp_path, steps))
    assert path.stat().st_size < 2_000_000
    assert "506 other sources" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "steps",
    [
        [{"step": 1, "pool_examples": 8, "chosen_examples": 4}],
        [{**STEPS[0], "pool_loss": None, "chosen_loss": None, "train_loss": None, "ms": {}, "drawn": {}}],
        [{**STEPS[0], "step": i, "pool_loss": None, "ms": {"load": 0.0}} for i in (3, 4)],
        [{**STEPS[0], "step": i, "weight_max": 1.0, "effective_sample_size": 4} for i in range(1, 22)],
        [{**STEPS[0], "pool_loss": 0.0, "chosen_loss": 0.0, "train_loss": 0.0, "tokens_scored": 0}],
    ],
)
def test_whatever_is_missing_the_page_is_made(tmp_path: Path, steps: list[dict[str, Any]]) -> None:
    text = text_of(write_run(tmp_path, steps, corebatch=None))
    assert "unknown" in text
    assert "<h2>Weights</h2>" not in text or steps[0].get("weight_max") == 2.5
    assert "nan" not in re.sub(r"<script.*?</script>", "", text).replace("nans", "").lower()
    assert Outline(text).open == []


def test_the_page_may_go_elsewhere(full: Path, tmp_path: Path) -> None:
    assert write_report(full, tmp_path / "new" / "page.html").name == "page.html"
    assert write_report(full, tmp_path / "new") == tmp_path / "new" / "report.html"
    assert not (full / "report.html").exists()


def test_an_error_leaves_the_old_page_and_nothing_else(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(full)
    old, files = path.read_bytes(), sorted(full.iterdir())

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(full)
    monkeypatch.undo()
    (full / "selection.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"selection\.jsonl:1"):
        write_report(full)
    assert path.read_bytes() == old
    assert sorted(full.iterdir()) == files


def test_matplotlib_is_imported_only_when_a_page_is_made() -> None:
    code = "import sys, corebatch.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_matplotlib_the_error_says_what_to_install(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return ordinary(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'corebatch\[report\]'") as caught:
        write_report(full)
    assert isinstance(caught.value, CorebatchError)
    assert isinstance(caught.value, ImportError)
    assert not (full / "report.html").exists()
