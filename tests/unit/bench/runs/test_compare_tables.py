"""Tables in the terminal and in Markdown: they tell the numbers, and what is marked or missing."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from compare_runs import change, make_line, make_lines, make_plan, write_comparison
from rich.console import Console

from corebatch.bench.runs import Comparison, markdown, read_comparison, terminal_tables
from corebatch.bench.runs.format import verdict
from corebatch.bench.runs.page import render
from corebatch.bench.runs.tables import flat
from corebatch.bench.runs.tables import marks as marks_sheet
from corebatch.bench.runs.task_tables import task_sources
from corebatch.rendering.formats import NOTHING
from corebatch.rendering.sheet import without_repeats

pytest.importorskip("scipy.stats", reason="the statistics of a comparison need scipy (extra bench)")

CORESET, SMALL, HARD, RANDOM = (f"{name}@wall_clock" for name in ("coreset", "plain_small", "hard", "random"))


def terminal(comparison: Comparison, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO())
    for table in terminal_tables(comparison):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def marked(tmp_path: Path) -> Comparison:
    """One run with too many steps, one failed, one missing, two of another commit, and a broken line."""
    lines = make_lines(make_plan())
    lines = change(lines, HARD, 2, lambda line: line.update(steps=50))
    lines = change(lines, RANDOM, 3, lambda line: line.update(status="failed", error="out of memory", final=None))
    for seed in (4, 5):
        lines = change(lines, SMALL, seed, lambda line: line.update(commit="other"))
    lines = [line for line in lines if (line["arm"], line["seed"]) != ("plain_small@steps", 5)]
    folder = write_comparison(tmp_path, lines=lines)
    with open(folder / "runs.jsonl", "a") as file:
        file.write('{"kind": "comp')
    return read_comparison(folder)


def test_an_honest_comparison_is_told_in_numbers(tmp_path: Path) -> None:
    comparison = read_comparison(write_comparison(tmp_path))
    for text in (terminal(comparison), markdown(comparison).replace("\\", "").replace("&lt;", "<")):
        assert "8 arms, 5 seeds: 40 of 40 runs are comparable, 0 left out with a reason, 0 missing." in text
        assert "coreset@wall_clock: better than each of the 6 baselines." in text
        for number in ("2.9859 ± 0.0066", "128,000", "120 G", "0.999", "< 0.001", "(66 to 68; 5/5)", "40.1 ± 0.1 %"):
            assert number in text, number
        assert "left out: " not in text


def test_marked_runs_are_shown_with_their_reasons_and_losses(marked: Comparison) -> None:
    for text in (terminal(marked), markdown(marked).replace("\\", "")):
        assert "8 arms, 5 seeds: 37 of 40 runs are comparable, 2 left out with a reason, 1 missing." in text
        assert "50 steps, allowed are 40; " in text
        assert "failed: out of memory" in text
        assert "commit other, the first line's is abc1234" in text
        assert "no run yet" in text
        assert "Line 40 of runs.jsonl is unfinished and was left out." in text
        assert "4 of 5" in text
    found = marks_sheet(marked)
    assert found is not None
    rows = {(row[0], row[1], row[2]): row[3:] for row in found.rows}
    assert set(rows) == {
        (SMALL, "4, 5", "noted"),
        ("plain_small@steps", "5", "missing"),
        (RANDOM, "3", "left out"),
        (HARD, "2", "left out"),
    }
    assert rows[HARD, "2", "left out"][1] == f"{make_line(HARD, 2)['final']['token']:.4f}"
    assert rows[RANDOM, "3", "left out"][1] == "–"  # noqa: RUF001


def test_every_row_of_markdown_has_as_many_cells_as_its_header(marked: Comparison) -> None:
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in markdown(marked).splitlines() if line.startswith("|")]
    blocks = re.findall(r"(?:^\|.*\n)+", markdown(marked), flags=re.MULTILINE)
    assert len(blocks) == 12  # arms, four tests, three times to loss and one of all arms, sources, marks, plan
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert sum(len(block.splitlines()) for block in blocks) == len(cells)


def test_names_from_outside_cannot_break_markdown(tmp_path: Path) -> None:
    evil = "a|b\n# <b>_x_*"
    lines = make_lines(make_plan())
    for line in lines:
        line["final"]["sources"] = {evil: 1.0}
        line["final"]["tasks"] = {evil: 0.5}
    text = markdown(read_comparison(write_comparison(tmp_path, {**make_plan(), "settings": {evil: evil}}, lines)))
    assert "<b>" not in text
    assert "\n# <" not in text.replace("# Comparison", "")
    assert "a\\|b�# &lt;b>\\_x\\_\\*" in text


def test_accuracies_by_source_are_told(tmp_path: Path) -> None:
    """Means over the seeds that have the source; a name from outside breaks nothing."""
    lines = make_lines(make_plan())
    for line in lines:
        if line["arm"] in (CORESET, SMALL):
            own = {"hard|er": 0.25 if line["arm"] == CORESET else 0.5} if line["seed"] == 1 else {}
            line["final"]["task_sources"] = {"sums": {"easy": 0.1 * line["seed"], **own}}
    comparison = read_comparison(write_comparison(tmp_path, lines=lines))
    (sheet,) = task_sources(comparison)
    found = {row[0]: dict(zip(sheet.header[1:], row[1:], strict=True)) for row in sheet.rows}
    seeds = [line["seed"] for line in lines if line["arm"] == CORESET]
    assert found["easy"][CORESET] == found["easy"][SMALL] == f"{10 * sum(seeds) / len(seeds):.1f} %"
    (hard,) = (name for name in found if name.startswith("hard"))
    assert (found[hard][CORESET], found[hard][SMALL], found[hard][HARD]) == ("25.0 %", "50.0 %", NOTHING)
    assert "accuracy by source" in markdown(comparison)
    assert "accuracy by source" in render(comparison)


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_an_unfinished_comparison_is_told(tmp_path: Path, seeds: int) -> None:
    lines = [line for line in make_lines(make_plan()) if line["seed"] <= seeds]
    comparison = read_comparison(write_comparison(tmp_path, lines=lines))
    text = terminal(comparison) + markdown(comparison)
    assert f"{40 - 8 * seeds} missing" in text
    assert ("no test: no common seed" in text) == (seeds == 0)
    assert ("no test: one common seed" in text) == (seeds == 1)
    assert ("(one seed)" in text) == (seeds == 1)
    assert re.search(r"\bnan\b", text.lower()) is None


@pytest.mark.parametrize("arm", [CORESET, SMALL])
def test_one_arm_alone_is_told(tmp_path: Path, arm: str) -> None:
    comparison = read_comparison(write_comparison(tmp_path, make_plan(arms=[arm])))
    text = terminal(comparison) + markdown(comparison)
    assert "1 arm, 5 seeds: 5 of 5 runs are comparable" in text
    assert "Nothing to test: the plan has no reference arm with a baseline beside it." in text
    assert "verdict" not in text


def test_arms_without_curves_or_final_losses_are_told(tmp_path: Path) -> None:
    lines = make_lines(make_plan())
    for line in lines:
        line["curve"] = []
        line["final"] = {"token": line["final"]["token"]}
    text = markdown(read_comparison(write_comparison(tmp_path, lines=lines)))
    assert "No run has a loss by source." in text
    assert text.count("no test: no common seed") == 12  # example and source mean against six baselines


def test_plan_tuning_and_provenance_are_told(tmp_path: Path) -> None:
    text = markdown(read_comparison(write_comparison(tmp_path))).replace("\\", "")
    for line in (
        "- grid.learning_rate: 0.0005, 0.001",
        "- rounds: 5",
        "- model: small-llama",
        "- datasets: {path: mix.jsonl}",
        "- hardware.cpu: two cores",
        "- commit: abc1234",
        "- first run: 2026-05-04T10:01:00",
    ):
        assert line in text.splitlines()


def test_a_rate_at_the_edge_of_the_grid_is_told(tmp_path: Path) -> None:
    plan = make_plan()
    assert "Edge: " not in markdown(read_comparison(write_comparison(tmp_path / "a", plan)))
    plan["arms"][2]["edge_of_grid"] = True
    comparison = read_comparison(write_comparison(tmp_path / "b", plan))
    for text in (terminal(comparison), markdown(comparison)):
        assert text.count("0.001 (edge)") == 1
        assert "Edge: the best learning rate was the last of the grid" in " ".join(text.split())


def test_a_repeated_caption_is_said_once(tmp_path: Path) -> None:
    text = markdown(read_comparison(write_comparison(tmp_path)))
    assert text.count("Holm's correction over 6 baselines") == 2  # losses, tasks
    assert text.count("read by linear interpolation") == 1
    assert without_repeats([]) == []


def test_long_values_are_cut() -> None:
    ((name, value),) = flat({"a": {"b": ["x"] * 1000}})
    assert name == "a.b"
    assert len(value) <= 300


def moved(lines, arm, by):
    """The lines, with another final token mean of one arm."""
    for line in lines:
        if line["arm"] == arm:
            line["final"]["token"] += by
    return lines


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (-0.5, f"{CORESET} lost to {SMALL} by the token mean at equal wall-clock"),
        (-0.05, f"No difference could be shown between {CORESET} and {SMALL} by the token mean at equal wall-clock"),
        (0.5, f"{CORESET} won against {SMALL} by the token mean at equal wall-clock"),
    ],
)
def test_the_title_says_who_won(tmp_path, by, said):
    plan = make_plan([CORESET, SMALL], [1, 2, 3])
    title, much = verdict(read_comparison(write_comparison(tmp_path, plan, moved(make_lines(plan), SMALL, by))))
    assert title == said
    assert re.fullmatch(rf"{CORESET} less {SMALL}: \S+ nats a token \(95 % interval \S+ to \S+, 3 seeds\).", much)


def test_the_title_is_of_the_strongest_baseline_at_the_same_budget(tmp_path):
    plan = make_plan()
    lines = [line for line in make_lines(plan) if line["seed"] < 4]
    found = read_comparison(write_comparison(tmp_path, plan, moved(moved(lines, "plain_small@steps", -9), RANDOM, -1)))
    title, much = verdict(found)
    said = f"So far: {CORESET} lost to {RANDOM}, the strongest of 4 baselines, by the token mean at equal wall-clock"
    assert title == said
    assert "p < 0.001 after Holm's correction, 3 seeds)." in much
    assert markdown(found).startswith(f"# {said}".replace("_", "\\_"))
    assert terminal(found).startswith(said)


def test_the_title_tells_of_more_rows_at_equal_steps(tmp_path):
    plan = make_plan([CORESET, "plain_large@wall_clock"])
    for arm in plan["arms"]:
        arm["budget"] = "steps"
    title, much = verdict(read_comparison(write_comparison(tmp_path, plan, make_lines(plan))))
    assert title == f"{CORESET} won against plain_large@wall_clock by the token mean at equal steps"
    assert much.endswith("plain_large@wall_clock trained 1.5 times as many rows.")


def test_the_title_of_one_seed_and_of_no_run(tmp_path):
    plan = make_plan([CORESET, SMALL], [1])
    title, much = verdict(read_comparison(write_comparison(tmp_path / "one", plan, make_lines(plan))))
    assert title == f"{CORESET} against {SMALL} by the token mean at equal wall-clock: no test: one common seed"
    assert much == f"{CORESET} less {SMALL}: -0.0405 nats a token (1 seed)."
    none = read_comparison(write_comparison(tmp_path / "none", plan, []))
    assert verdict(none) == ("2 arms over 1 seed: no result yet", "")
