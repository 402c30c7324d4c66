"""The page of a comparison: contents, safety, size, and that it is made whatever is missing."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from compare_runs import ARMS, change, make_line, make_lines, make_order, make_plan, write_comparison

from corebatch.bench.runs import read_comparison, write_outputs

pytest.importorskip("scipy.stats", reason="the statistics of a comparison need scipy (extra bench)")
pytest.importorskip("matplotlib", reason="the page of a comparison needs matplotlib (extra report)")

EVIL = '</svg><script>alert("1")</script>'


class Tags(HTMLParser):
    """Collects tags and attributes, and checks that elements are closed in order."""

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
        if tag not in ("meta", "wbr", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [value for found, value in self.attributes if found == name]


def page(folder: Path, plan: dict[str, Any] | None = None, lines: list[dict[str, Any]] | None = None) -> str:
    _, path = write_outputs(read_comparison(write_comparison(folder, plan, lines)))
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> str:
    lines = change(make_lines(make_plan()), "hard@wall_clock", 2, lambda line: line.update(steps=50))
    return page(tmp_path_factory.mktemp("full"), lines=lines)


def test_the_page_tells_the_numbers_and_the_marks(full: str) -> None:
    won = "coreset@wall_clock won against tokens_importance@wall_clock, the strongest of 4 baselines,"
    assert f"<h1>{won} by the token mean at equal wall-clock</h1>" in full
    assert "coreset@wall_clock less tokens_importance@wall_clock: -0.0222 nats a token (95 % interval -0.02" in full
    for title in ("Held-out loss", "Tasks", "Sources", "All arms in numbers", "Marked and missing runs", "The plan"):
        assert f"<h2>{title}</h2>" in full
    for number in ("2.9859 ± 0.0066", "&lt; 0.001", "50 steps, allowed are 40", "40.1 ± 0.1 %", "67 % (66 to 68; 5/5)"):
        assert number in full, number
    drawings = re.findall(r'<svg viewBox="0 0 \d+ \d+" role="img"', full)
    assert len(drawings) == 3 * (4 + 2) + 2 + 1  # curves and ends of three means, a task, sources


def test_the_page_is_well_formed_with_unique_ids(full: str) -> None:
    tags = Tags(full)
    assert tags.open == []
    ids = tags.values("id")
    assert len(ids) == len(set(ids))
    used = tags.values("href") + tags.values("clip-path")
    assert {re.sub(r"url\(#|#|\)", "", value) for value in used} <= set(ids)


def test_the_page_needs_no_network_and_no_script(full: str) -> None:
    for reference in ("http:", "https:", "//", "@import", "url(h", "src=", "javascript", "<script", "<link"):
        assert reference not in full, reference
    assert "default-src 'none'" in full


def test_colours_of_drawings_follow_the_theme(full: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", full, flags=re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", drawings) == []
    style = full[: full.index("</style>")]
    for name in set(re.findall(r"var\((--\w+)\)", full)) - {"--key"}:
        assert style.count(f"{name}:") == 2, name  # once for light, once for dark


def test_each_control_hides_what_is_its_own(full: str) -> None:
    tags = Tags(full)
    ids, classes = tags.values("id"), " ".join(tags.values("class")).split()
    for mean in ("token", "example", "source"):
        assert f"main:has(#mean-{mean}:not(:checked)) .by-{mean} {{ display: none; }}" in full
        assert f"mean-{mean}" in ids
        assert classes.count(f"by-{mean}") == 1
    for i in range(len(ARMS)):
        assert f'main:has(#show{i}:not(:checked)) [id$="-arm{i}"] {{ display: none; }}' in full
        assert f"show{i}" in ids
        lines = [name for name in ids if name.endswith(f"-line-arm{i}")]
        assert len(lines) == 12  # three means, four axes
        assert not [name for name in ids if name.endswith(f"-arm{i}") and name.startswith(("final", "difference"))]
    shown = re.findall(r'id="show(\d+)" autocomplete="off" checked', full)
    assert [ARMS[int(i)][0] for i in shown] == [
        "coreset@wall_clock",
        "plain_large@wall_clock",
        "plain_small@wall_clock",
        "random@wall_clock",
        "tokens_importance@wall_clock",
    ]


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    plan = make_plan(arms=["coreset@wall_clock", "plain_small@wall_clock"])
    lines = make_lines(plan)
    for each in plan["arms"]:
        each["arm"] += EVIL
        each["title"] = EVIL
    plan["settings"] = {EVIL: [EVIL, {EVIL: EVIL}]}
    plan["commit"] = EVIL
    for line in lines:
        line["arm"] += EVIL
        line["final"]["sources"] = {EVIL: 1.0 + line["seed"]}
        line["final"]["tasks"] = {EVIL: 0.1 * line["seed"]}
    lines[0].update(status="failed", error=EVIL)
    text = page(tmp_path, plan, lines)
    assert EVIL not in text
    assert html.escape(EVIL) in text
    tags = Tags(text)
    assert tags.open == []
    assert "script" not in tags.tags


@pytest.mark.parametrize("seeds", [0, 1])
def test_an_unfinished_comparison_has_a_page(tmp_path: Path, seeds: int) -> None:
    text = page(tmp_path, lines=[line for line in make_lines(make_plan()) if line["seed"] <= seeds])
    assert f"{40 - 8 * seeds} missing" in text
    assert Tags(text).open == []
    assert re.search(r"\bnan\b", text.lower()) is None


@pytest.mark.parametrize("arm", ["coreset@wall_clock", "hard@wall_clock"])
def test_one_arm_alone_has_a_page(tmp_path: Path, arm: str) -> None:
    text = page(tmp_path, make_plan(arms=[arm], seeds=[1]))
    assert "<h1>1 arm over 1 seed: no baseline to test against</h1>" in text
    assert "The plan has no reference arm with a baseline beside it." in text
    assert Tags(text).open == []


def test_runs_of_a_single_point_and_of_equal_losses_have_a_page(tmp_path: Path) -> None:
    lines = make_lines(make_plan())
    for line in lines:
        line["curve"] = line["curve"][-1:]
        for part in (line["final"], *line["curve"]):
            part.update(token=0.0, example=0.0, source=0.0, sources={"a": 0.0})
    assert Tags(page(tmp_path, lines=lines)).open == []


def test_many_arms_sources_and_points_stay_below_five_megabytes(tmp_path: Path) -> None:
    """40 arms, 8 of them baselines, 5 seeds, 70 evaluations a run (more than are drawn), 300 sources."""
    plan = make_plan(arms=["coreset@wall_clock"])
    names = [f"method_{i}_with_a_long_name@{('steps', 'flops', 'wall_clock')[i % 3]}" for i in range(39)]
    plan["arms"] += [
        {**plan["arms"][0], "arm": n, "method": n.partition("@")[0], "baseline": i < 8} for i, n in enumerate(names)
    ]
    sources = {f"source number {i} with a name": 3.0 + i / 100 for i in range(300)}
    lines = []
    for seed in plan["seeds"]:
        honest = make_line("coreset@wall_clock", seed)
        honest["final"]["sources"] = sources
        curve = []
        for step in range(1, 71):
            loss = 3.0 + 1 / step + 0.01 * seed
            spent = {"tokens_trained": 640 * step, "flops": 6e8 * step, "seconds": 0.3 * step}
            curve.append({"step": step, **spent, "token": loss, "example": loss, "source": loss})
        honest["curve"] = curve
        lines += [{**honest, "arm": each["arm"]} for each in plan["arms"]]
    text = page(tmp_path, plan, lines)
    assert len(text.encode()) < 5_000_000
    assert "276 more sources are in the table only." in text
    assert "100 more sources are not shown." in text


def test_outputs_go_where_they_are_asked_to_and_are_the_same_each_time(tmp_path: Path) -> None:
    comparison = read_comparison(write_comparison(tmp_path / "run", make_plan(seeds=[1, 2])))
    first = [path.read_bytes() for path in write_outputs(comparison)]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *("comparison.html", "comparison.md", "plan.json", "runs.jsonl")
    ]
    elsewhere = write_outputs(comparison, tmp_path / "new" / "folder")
    assert elsewhere == (tmp_path / "new/folder/comparison.md", tmp_path / "new/folder/comparison.html")
    assert [path.read_bytes() for path in elsewhere] == first


def test_an_error_leaves_the_old_outputs_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = read_comparison(write_comparison(tmp_path, make_plan(seeds=[1, 2])))
    write_outputs(comparison)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_outputs(comparison)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_heavy_packages_are_imported_only_when_they_are_needed() -> None:
    code = "import sys, corebatch.bench.runs; sys.exit('matplotlib' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_made_up_orders_agree_on_their_common_prefix() -> None:
    """What the other tests rest on."""
    assert make_order(3, 640) == make_order(3, 1280)[:10]
    assert make_order(3, 64) != make_order(4, 64)
