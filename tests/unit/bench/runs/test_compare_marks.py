"""Honesty: every kind of tampering is marked, on the run that was tampered with and on no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compare_runs import TOKENS, Line, change, make_line, make_lines, make_order, make_plan, write_comparison
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corebatch.bench.runs import Comparison, read_comparison
from corebatch.bench.runs.comparison import PlannedArm
from corebatch.bench.runs.statistics import LOSSES, paired_tests, values

CORESET, PLAIN, HARD = "coreset@wall_clock", "plain_small@wall_clock", "hard@wall_clock"


def tampered(folder: Path, arm: str, seed: int, how: Callable[[Line], None]) -> Comparison:
    return read_comparison(write_comparison(folder, lines=change(make_lines(make_plan()), arm, seed, how)))


def more_steps(line: Line) -> None:
    """One step more than allowed, and everything else of it made to agree, the stated allowance too."""
    share = (line["steps"] + 1) / line["steps"]
    line["steps"] += 1
    for key in ("rows_drawn", "rows_trained", "tokens_drawn", "tokens_trained"):
        line[key] = round(line[key] * share)
    for key in ("flops", "seconds"):
        line[key] *= share
    line["planned"] = {key: line[key] for key in ("steps", "rows_drawn", "rows_trained")}
    line["order"] = make_order(line["seed"], line["rows_drawn"])


def setting(**fields: Any) -> Callable[[Line], None]:
    return lambda line: line.update(fields)


def other_final(**fields: Any) -> Callable[[Line], None]:
    return lambda line: line["final"].update(fields)


EXCLUDING: list[tuple[str, str, Callable[[Line], None], str]] = [
    ("failed", CORESET, setting(status="failed", error="out of memory"), "failed: out of memory"),
    ("failed", CORESET, setting(status="failed"), "failed: status 'failed'"),
    ("failed", CORESET, setting(status=None), "failed: status None"),
    ("allowance", CORESET, more_steps, "its line allows 41 steps, the plan 40"),
    ("more_steps", CORESET, more_steps, "41 steps, allowed are 40"),
    ("more_rows_drawn", HARD, more_steps, "2,624 rows drawn, allowed are 2,560"),
    ("more_rows_trained", HARD, more_steps, "1,312 rows trained, allowed are 1,280"),
    ("more_rows_trained", HARD, setting(rows_trained=1281), "1,281 rows trained, allowed are 1,280"),
    ("fewer_steps", HARD, setting(steps=39), "39 steps of the planned 40"),
    ("allowance", HARD, lambda line: line["planned"].update(steps=30), "its line allows 30 steps, the plan 40"),
    ("more_tokens", HARD, setting(tokens_trained=256_001), "256,001 tokens trained, more than the 256,000 drawn"),
    ("plain_tokens", PLAIN, setting(tokens_trained=100), "plain, and 100 tokens trained of 192,000 drawn"),
    ("order", HARD, lambda line: line.update(order=make_order(99, 2560)), "first among the examples 1 to 64"),
    ("order", HARD, lambda line: line["order"].__setitem__(9, "x"), "first among the examples 577 to 640"),
    ("order_unknown", HARD, lambda line: line["order"].pop(), "order recorded for 2,496 of 2,560 examples"),
    ("order_unknown", HARD, setting(order=[]), "order recorded for 0 of 2,560 examples"),
    ("tokens", PLAIN, setting(tokens_drawn=192_001, tokens_trained=192_001), "192,001 tokens drawn in 1,920 examples"),
    ("learning_rate", HARD, setting(learning_rate=0.002), "learning rate 0.002, the plan's is 0.001"),
    ("learning_rate", HARD, setting(learning_rate=None), "learning rate none, the plan's is 0.001"),
    ("adam_beta2", HARD, setting(adam_beta2=0.99), "beta2 0.99, the plan's is 0.999"),
    ("nan", HARD, other_final(token=float("nan")), "NaN or infinite: token mean of the final losses"),
    ("nan", HARD, other_final(sources={"gsm": float("inf")}), "source gsm of the final losses"),
    ("nan", HARD, lambda line: line["curve"][2].update(source=float("nan")), "source mean of the curve at step 15"),
    ("nan", HARD, other_final(tasks={"sums": float("nan")}), "task sums"),
    ("nan", HARD, setting(seconds=float("inf")), "NaN or infinite: seconds"),
    ("unmeasured", HARD, setting(final=None), "no final held-out loss"),
    ("uncounted", HARD, setting(tokens_trained=None, flops=None), "not recorded: tokens_trained, flops"),
    ("other_seconds", HARD, setting(seconds=40.0), "40 seconds are not its steps by the plan's seconds a step"),
    ("other_flops", HARD, setting(flops=6e10), "6e+10 FLOPs are not its steps by the plan's FLOPs a step"),
    ("seed", HARD, setting(seed=77), "the plan has no such seed"),
    ("arm", HARD, setting(arm="new@steps"), "the plan has no such arm"),
]


@pytest.mark.parametrize("kind, arm, how, text", EXCLUDING, ids=[f"{e[0]}-{i}" for i, e in enumerate(EXCLUDING)])
def test_a_tampered_line_is_marked_and_left_out_and_no_other(
    tmp_path: Path, kind: str, arm: str, how: Callable[[Line], None], text: str
) -> None:
    comparison = tampered(tmp_path, arm, 3, how)
    found = [mark for mark in comparison.marks if mark.kind == kind]
    assert [mark.text for mark in found if text in mark.text] == [found[0].text]
    assert all(mark.excludes for mark in found)
    marked = {(mark.arm, mark.seed) for mark in comparison.marks if mark.kind != "missing"}
    assert len(marked) == 1
    assert len(comparison.comparable) == len(comparison.runs) - 1 == 39
    if kind not in ("arm", "seed"):
        assert marked == {(arm, 3)}
        assert sorted(values(comparison, arm, LOSSES[0])) == [1, 2, 4, 5]


def test_a_marked_run_is_in_no_test(tmp_path: Path) -> None:
    comparison = tampered(tmp_path, CORESET, 3, more_steps)
    tests = paired_tests(comparison, LOSSES[0])
    assert {test.n for test in tests} == {4}
    fewer = tampered(tmp_path, PLAIN, 3, more_steps)
    assert {test.baseline: test.n for test in paired_tests(fewer, LOSSES[0])}[PLAIN] == 4


@pytest.mark.parametrize(
    "kind, how, text",
    [
        ("commit", setting(commit="other"), "commit other, the first line's is abc1234"),
        ("hardware", setting(hardware={"cpu": "four cores", "gpu": None}), "cpu four cores (two cores)"),
        ("versions", setting(versions={"torch": "2.9", "peft": "1"}), "peft 1 (unknown)"),
        (
            "fewer_rows_drawn",
            setting(rows_drawn=2559, tokens_drawn=2559 * TOKENS),
            "2,559 rows drawn of the planned 2,560",
        ),
    ],
)
def test_what_may_be_harmless_is_noted_and_counted(
    tmp_path: Path, kind: str, how: Callable[[Line], None], text: str
) -> None:
    comparison = tampered(tmp_path, HARD, 3, how)
    assert [(mark.arm, mark.seed, mark.kind, mark.excludes) for mark in comparison.marks] == [(HARD, 3, kind, False)]
    assert text in comparison.marks[0].text
    assert len(comparison.comparable) == 40


def test_without_a_majority_all_that_disagree_are_marked(tmp_path: Path) -> None:
    plan = make_plan(arms=[CORESET, HARD], seeds=[1])
    lines = change(make_lines(plan), HARD, 1, lambda line: line["order"].__setitem__(0, "x"))
    comparison = read_comparison(write_comparison(tmp_path, plan, lines))
    assert [(mark.arm, mark.kind) for mark in comparison.marks] == [(CORESET, "order"), (HARD, "order")]
    assert comparison.comparable == ()


def test_orders_of_unequal_length_are_compared_on_what_they_share(tmp_path: Path) -> None:
    lines = [make_line(arm, 1) for arm in (CORESET, PLAIN)]
    assert len(lines[0]["order"]) != len(lines[1]["order"])
    plan = make_plan(arms=[CORESET, PLAIN], seeds=[1])
    assert read_comparison(write_comparison(tmp_path, plan, lines)).marks == ()


def test_a_failed_run_has_no_vote(tmp_path: Path) -> None:
    """Two failed runs with another order do not outvote an honest one."""
    plan = make_plan(arms=[CORESET, HARD, PLAIN], seeds=[1])
    lines = make_lines(plan)
    for arm in (HARD, PLAIN):
        lines = change(lines, arm, 1, lambda line: line.update(status="failed", order=["x"], error="killed"))
    comparison = read_comparison(write_comparison(tmp_path, plan, lines))
    assert [(mark.arm, mark.kind) for mark in comparison.marks] == [(PLAIN, "failed"), (HARD, "failed")]


@pytest.mark.parametrize(
    "arm, key, value, text",
    [
        (PLAIN, "seconds_per_step", [1.2, 1.2], "72 seconds, the budget is 60"),
        ("plain_small@flops", "flops_per_step", [3e9, 3e9], "1.8e+11 FLOPs, the budget is 1.2e+11"),
        ("plain_small@steps", "steps", 50, "50 steps at equal steps, the reference has 40"),
    ],
)
def test_a_plan_that_grants_an_arm_more_than_the_budget_is_found(
    tmp_path: Path, arm: str, key: str, value: Any, text: str
) -> None:
    plan = make_plan()
    next(each for each in plan["arms"] if each["arm"] == arm)[key] = value
    lines = make_lines(plan)
    for line in lines:
        if line["arm"] == arm:
            line[key.removesuffix("_per_step")] = {"steps": 50, "seconds": 72.0, "flops": 1.8e11}[
                key.removesuffix("_per_step")
            ]
    comparison = read_comparison(write_comparison(tmp_path, plan, lines))
    found = [mark for mark in comparison.marks if mark.kind == "over_budget"]
    assert {mark.arm for mark in found} == {arm}
    assert len(found) == 5
    assert found[0].text == text


def test_one_step_of_rounding_up_is_within_the_budget(tmp_path: Path) -> None:
    plan = {**make_plan(), "seconds": 59.2}
    assert read_comparison(write_comparison(tmp_path, plan)).marks == ()


def test_seconds_between_first_and_later_epochs_are_fine(tmp_path: Path) -> None:
    plan = make_plan()
    plan["arms"][0]["seconds_per_step"] = [2.0, 1.2]
    assert read_comparison(write_comparison(tmp_path, plan)).marks == ()


def test_a_rate_that_the_plan_leaves_open_is_left_open_by_runs(tmp_path: Path) -> None:
    plan = make_plan(arms=[CORESET, HARD])
    lines = make_lines(plan)
    for each in (*plan["arms"], *lines):
        each["adam_beta2"] = None
    assert read_comparison(write_comparison(tmp_path / "a", plan, lines)).marks == ()
    lines = change(lines, HARD, 2, setting(adam_beta2=0.9))
    (mark,) = read_comparison(write_comparison(tmp_path / "b", plan, lines)).marks
    assert (mark.arm, mark.seed, mark.text) == (HARD, 2, "beta2 0.9, the plan sets none")


def test_a_missing_run_is_listed(tmp_path: Path) -> None:
    lines = [line for line in make_lines(make_plan()) if (line["arm"], line["seed"]) != (HARD, 2)]
    comparison = read_comparison(write_comparison(tmp_path, lines=lines))
    assert [(mark.arm, mark.seed, mark.kind, mark.excludes) for mark in comparison.marks] == [
        (HARD, 2, "missing", True)
    ]
    assert comparison.missing == ((HARD, 2),)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arm=st.sampled_from([arm["arm"] for arm in make_plan()["arms"]]),
    seed=st.sampled_from([1, 2, 3, 4, 5]),
    key=st.sampled_from(["steps", "rows_drawn", "rows_trained", "tokens_trained", "seconds", "flops"]),
    more=st.integers(1, 10_000),
)
def test_no_arm_gets_away_with_more(tmp_path: Path, arm: str, seed: int, key: str, more: int) -> None:
    """Whatever is counted above the allowance, the run is left out; tokens above those drawn, time and FLOPs by more
    than rounding."""
    line = make_line(arm, seed)
    excess = {"tokens_trained": line["tokens_drawn"] - line["tokens_trained"] + more}
    excess |= {name: line[name] * (0.02 + more) for name in ("seconds", "flops")}
    comparison = tampered(tmp_path, arm, seed, lambda line: line.update({key: line[key] + excess.get(key, more)}))
    assert (arm, seed) in comparison.excluded
    assert len(comparison.excluded) == 1


def test_marks_follow_the_plan_and_do_not_depend_on_the_order_of_lines(tmp_path: Path) -> None:
    lines = make_lines(make_plan())
    for arm in (HARD, PLAIN):
        lines = change(lines, arm, 4, lambda line: line.update(steps=1))
    first = read_comparison(write_comparison(tmp_path / "a", lines=lines))
    again = read_comparison(write_comparison(tmp_path / "b", lines=lines[::-1]))
    assert first.marks == again.marks
    assert [mark.arm for mark in first.marks if mark.kind == "fewer_steps"] == [PLAIN, HARD]
    assert json.loads((tmp_path / "a" / "plan.json").read_text())["reference"] == "coreset"


def test_arms_that_draw_by_what_rows_taught_draw_for_themselves() -> None:
    """Whoever trains otherwise learns otherwise; shares of sources are the same for all."""

    def drawing(name: str, sampling: object) -> str:
        return PlannedArm(
            name=name, rows_drawn_per_step=8, rows_trained_per_step=8, steps=5, coreset={"sampling": sampling}
        ).drawing

    names = ("coreset@wall_clock", "hard@wall_clock")
    assert len({drawing(name, {"temperature": 0.0}) for name in names}) == 1
    assert len({drawing(name, {"learnt": {"method": "infobatch"}}) for name in names}) == 2
