"""Reading: what a folder holds, finished or not, whole or broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from compare_runs import SEEDS, make_line, make_lines, make_plan, write_comparison

from corebatch.bench.runs import read_comparison, read_runs
from corebatch.errors import CorebatchError, DataError


def test_an_honest_comparison_is_read_whole_and_has_no_marks(tmp_path: Path) -> None:
    comparison = read_comparison(write_comparison(tmp_path))
    assert len(comparison.plan.arms) == 8
    assert len(comparison.comparable) == len(comparison.runs) == 40
    assert comparison.marks == comparison.notes == comparison.missing == ()
    assert comparison.sources == ("algebra", "gsm", "tiny")
    assert comparison.tasks == ("sums",)
    assert list(comparison.of("plain_small@steps")) == list(SEEDS)
    reference = comparison.plan.reference_arm
    assert reference is not None
    assert reference.name == "coreset@wall_clock"
    assert not reference.plain
    assert {arm.name for arm in comparison.plan.arms if arm.plain} == {
        "plain_large@wall_clock",
        *(f"plain_small@{budget}" for budget in ("steps", "flops", "wall_clock")),
    }


def test_a_line_keeps_its_numbers(tmp_path: Path) -> None:
    line = make_line("coreset@wall_clock", 2)
    run = read_comparison(write_comparison(tmp_path, lines=[line])).runs[0]
    for key in ("arm", "seed", "steps", "rows_drawn", "tokens_trained", "tokens_scored", "flops", "seconds"):
        assert getattr(run, key) == line[key], key
    assert run.ok
    assert run.order == tuple(line["order"])
    assert run.final is not None
    assert run.final.losses["source"] == line["final"]["source"]
    point, told = run.curve[1], line["curve"][1]
    assert point.step == told["step"]
    assert point.spent == {
        "steps": told["step"],
        "tokens": told["tokens_trained"],
        "flops": told["flops"],
        "seconds": told["seconds"],
    }
    assert point.sources == told["sources"]


def test_a_comparison_without_runs_lists_them_as_missing(tmp_path: Path) -> None:
    comparison = read_comparison(write_comparison(tmp_path, lines=[]))
    assert comparison.runs == ()
    assert len(comparison.missing) == 40
    assert comparison.missing[0] == ("coreset@wall_clock", 1)


def test_an_unfinished_last_line_is_left_out_and_noted(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path)
    path = folder / "runs.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    comparison = read_comparison(folder)
    assert comparison.notes == ("Line 40 of runs.jsonl is unfinished and was left out.",)
    assert comparison.missing == (("hard@wall_clock", 5),)


def test_a_line_broken_by_a_kill_in_the_middle_is_left_out_and_noted(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path)
    lines = (folder / "runs.jsonl").read_text().splitlines()
    lines[3] = lines[3][:100]
    (folder / "runs.jsonl").write_text("\n".join(lines) + "\n\n")
    comparison = read_comparison(folder)
    assert comparison.notes == ("Line 4 of runs.jsonl is broken and was left out.",)
    assert len(comparison.runs) == 39
    assert len(comparison.missing) == 1


def test_the_last_ok_line_of_an_arm_and_seed_counts(tmp_path: Path) -> None:
    plan = make_plan(arms=["coreset@wall_clock"], seeds=[1])
    line = make_line("coreset@wall_clock", 1)
    failed = {**line, "status": "failed", "error": "killed"}
    later = {**line, "time": "later"}
    comparison = read_comparison(write_comparison(tmp_path, plan, [line, failed, later, failed]))
    assert [run.time for run in comparison.runs] == ["later"]
    expected = "coreset@wall_clock, seed 1, has 4 lines (1, 2 (failed), 3, 4 (failed)); line 3 counts."
    assert comparison.notes == (expected,)
    assert comparison.marks == ()
    comparison = read_comparison(write_comparison(tmp_path, plan, [failed, {**failed, "error": "again"}]))
    assert [run.error for run in comparison.runs] == ["again"]
    assert [mark.kind for mark in comparison.marks] == ["failed"]


def test_lines_of_another_kind_are_left_out_and_noted(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, lines=[{"kind": "timing"}, *make_lines(make_plan())])
    comparison = read_comparison(folder)
    assert comparison.notes == ("Line 1 of runs.jsonl is of another kind (timing) and was left out.",)
    assert len(comparison.runs) == 40


def test_no_file_is_no_runs(tmp_path: Path) -> None:
    assert read_runs(tmp_path / "runs.jsonl") == []


@pytest.mark.parametrize(
    "field, value, told",
    [
        ("seed", 1.5, "'seed' should be a whole number"),
        ("seed", True, "'seed' should be a whole number"),
        ("arm", None, "'arm' is missing"),
        ("steps", -1, "'steps' should be a whole number"),
        ("flops", "many", "'flops' should be a number"),
        ("curve", {}, "'curve' should be a list"),
        ("curve", [{"token": 1.0}], r"curve\[0\]: field 'step' is missing"),
        ("order", "abc", "'order' should be a list"),
        ("final", [], "'final' should be an object"),
        ("planned", {"steps": 1.5}, "'planned.steps' should be a whole number"),
    ],
)
def test_a_wrong_field_is_an_error_that_names_file_line_and_field(
    tmp_path: Path, field: str, value: Any, told: str
) -> None:
    lines = make_lines(make_plan())
    lines[2] = {**lines[2], field: value}
    with pytest.raises(DataError, match=rf"runs\.jsonl:3.*{told}"):
        read_comparison(write_comparison(tmp_path, lines=lines))


@pytest.mark.parametrize(
    "field, value, told",
    [
        ("arms", [], "'arms' should be a list of arms"),
        ("arms", [{}], r"arms\[0\]: field 'arm' is missing"),
        ("arms", make_plan()["arms"] * 2, "names of their own"),
        ("arms", [{**make_plan()["arms"][0], "steps": None}], "'steps' is missing"),
        ("arms", [{**make_plan()["arms"][0], "seconds_per_step": ["1"]}], "should be a number"),
        ("arms", [{**make_plan()["arms"][0], "flops_per_step": [float("nan")]}], "should be finite"),
        ("seeds", None, "'seeds' should be a list of whole numbers"),
        ("tuning", 3, "'tuning' should be an object"),
    ],
)
def test_a_wrong_plan_is_an_error(tmp_path: Path, field: str, value: Any, told: str) -> None:
    folder = write_comparison(tmp_path, {**make_plan(), field: value}, [])
    with pytest.raises(DataError, match=told):
        read_comparison(folder)


def test_a_folder_without_a_plan_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorebatchError, match=r"plan\.json"):
        read_comparison(tmp_path / "nowhere")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_comparison(tmp_path)


def test_a_plan_may_say_little(tmp_path: Path) -> None:
    arm = {"arm": "mine@steps", "rows_drawn_per_step": 4, "rows_trained_per_step": 2, "steps": 3, "seconds_per_step": 2}
    (tmp_path / "plan.json").write_text(json.dumps({"arms": [arm], "seeds": [1]}))
    plan = read_comparison(tmp_path).plan
    assert plan.reference_arm is None
    assert plan.arms[0].method == "mine"
    assert plan.arms[0].budget == "steps"
    assert plan.arms[0].seconds_per_step == (2.0,)
