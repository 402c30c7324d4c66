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
from report_runs import EVALUATION, INFO, PEAK, STEPS, STEPS_TODAY, long_run, write_run

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
    assert "<h1>At each of 2 steps 4 of 8 examples were chosen and trained on.</h1>" in text
    for number in ("16 drawn, 8 trained", "87.5 %", "75.0 %", "2.000", "30.1–95.4", "learning_<wbr>rate"):  # noqa: RUF001
        assert number in text
    for title in ("Loss", "Held-out data", "Sources", "Time, memory and tokens", "Weights", "Settings"):
        assert f"<h2>{title}</h2>" in text
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
    folder = write_run(tmp_path, steps, corebatch=info, evaluation=scores, trainer_state=state)
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
