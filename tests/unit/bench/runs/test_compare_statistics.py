"""Means, intervals, tests and times against scipy, and by hand."""

from __future__ import annotations

import builtins
import math
from pathlib import Path
from typing import Any

import pytest
from compare_runs import SEEDS, Line, make_lines, make_plan, write_comparison
from hypothesis import given
from hypothesis import strategies as st

from corebatch.bench.runs import Comparison, read_comparison
from corebatch.bench.runs.statistics import (
    LOSSES,
    Metric,
    estimate,
    first_reached,
    holm,
    mean_curve,
    metrics,
    paired_tests,
    time_to_loss,
    values,
)
from corebatch.errors import InputError
from corebatch.report import MissingExtraError

stats = pytest.importorskip("scipy.stats", reason="the statistics of a comparison need scipy (extra bench)")

CORESET, LARGE, SMALL = "coreset@wall_clock", "plain_large@wall_clock", "plain_small@wall_clock"
TOKEN = LOSSES[0]
numbers = st.floats(-100, 100, allow_nan=False)


def two_arms(folder: Path, ours: list[float | None], theirs: list[float | None]) -> Comparison:
    """Final token means of the reference and of one baseline, by seed; None: no run."""
    plan = make_plan(arms=[CORESET, SMALL], seeds=range(1, len(ours) + 1))
    lines: list[Line] = []
    for line in make_lines(plan):
        value = (ours if line["arm"] == CORESET else theirs)[line["seed"] - 1]
        if value is not None:
            line["final"] = {"token": value}
            lines.append(line)
    return read_comparison(write_comparison(folder, plan, lines))


@given(st.lists(numbers, min_size=2, max_size=12))
def test_the_interval_is_scipys(found: list[float]) -> None:
    made = estimate(found)
    assert made is not None
    assert made.n == len(found)
    assert made.mean == pytest.approx(sum(found) / len(found), abs=1e-9)
    if len(set(found)) > 1:
        from statistics import stdev

        error = stdev(found) / math.sqrt(len(found))
        if error > 1e-9:
            low, high = stats.t.interval(0.95, len(found) - 1, loc=made.mean, scale=error)
            assert (made.low, made.high) == (pytest.approx(low, abs=1e-8), pytest.approx(high, abs=1e-8))


def test_the_interval_by_hand() -> None:
    """1, 2, 3: standard deviation 1, and 4.303 is Student's 97.5 % quantile for two degrees of freedom."""
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.mean, found.n) == (2.0, 3)
    assert found.high == pytest.approx(2 + 4.3027 / math.sqrt(3), abs=1e-4)


def test_few_values_and_no_spread() -> None:
    assert estimate([]) is None
    one = estimate([2.5])
    assert one is not None
    assert (one.n, one.mean, one.low, one.high) == (1, 2.5, None, None)
    same = estimate([2.5, 2.5, 2.5])
    assert same is not None
    assert (same.low, same.high) == (2.5, 2.5)


def test_the_paired_test_is_scipys(tmp_path: Path) -> None:
    comparison = read_comparison(write_comparison(tmp_path))
    for metric in metrics(comparison):
        tests = paired_tests(comparison, metric)
        assert len(tests) == 6
        for test in tests:
            a, b = (values(comparison, arm, metric) for arm in (CORESET, test.baseline))
            ours, theirs = [a[seed] for seed in SEEDS], [b[seed] for seed in SEEDS]
            expected = stats.ttest_rel(ours, theirs)
            interval = expected.confidence_interval(0.95)
            assert test.n == 5
            assert test.p == pytest.approx(expected.pvalue, rel=1e-6)
            assert (test.low, test.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
        assert [test.p_holm for test in tests] == pytest.approx(holm([test.p for test in tests if test.p is not None]))


def test_the_paired_test_by_hand(tmp_path: Path) -> None:
    """Differences -1, -2, -3: t = -2 / (1 / sqrt 3) = -3.464 with 2 degrees of freedom, whose two-sided p is
    1 - t / sqrt(2 + t^2) = 0.0742."""
    comparison = two_arms(tmp_path, [1.0, 1.0, 1.0], [2.0, 3.0, 4.0])
    (test,) = paired_tests(comparison, TOKEN)
    t = 2 * math.sqrt(3)
    assert test.difference == -2
    assert test.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert test.p_holm == test.p
    assert test.verdict == "no difference shown"


def test_holm_by_the_textbook() -> None:
    """Four tests, 0.01, 0.04, 0.03, 0.005: times 3, 1, 2, 4, and never below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([0.9, 0.8, 0.7]) == [1.0, 1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float]) -> None:
    """Holm's own words: from the smallest p up, reject while p <= level / (tests left); stop at the first that is
    not."""
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = set()
    for rank, i in enumerate(order):
        if p_values[i] * (len(p_values) - rank) > 0.05:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(adjusted) if p <= 0.05} == rejected
    assert all(p <= q <= min(1.0, len(p_values) * p + 1e-12) or q == 1 for p, q in zip(p_values, adjusted, strict=True))
    assert [adjusted[i] for i in order] == sorted(adjusted)


@pytest.mark.parametrize(
    "shift, task, verdict",
    [(-0.1, False, "better"), (0.1, False, "worse"), (0.1, True, "better"), (-0.1, True, "worse")],
)
def test_the_verdict_knows_which_way_is_better(tmp_path: Path, shift: float, task: bool, verdict: str) -> None:
    comparison = two_arms(tmp_path, [0.5 + shift, 0.51 + shift, 0.52 + shift], [0.5, 0.511, 0.5202])
    for run in comparison.runs:
        assert run.final is not None
        run.final.tasks.update({"sums": run.final.losses["token"]})  # type: ignore[attr-defined]
    (test,) = paired_tests(comparison, Metric("sums", task=True) if task else TOKEN)
    assert test.verdict == verdict


def test_an_untestable_baseline_still_counts_in_holm(tmp_path: Path) -> None:
    lines = [line for line in make_lines(make_plan()) if line["arm"] != LARGE]
    comparison = read_comparison(write_comparison(tmp_path, lines=lines))
    tests = {test.baseline: test for test in paired_tests(comparison, TOKEN)}
    assert tests[LARGE].verdict == "no test: no common seed"
    assert (tests[LARGE].n, tests[LARGE].p, tests[LARGE].difference) == (0, None, None)
    assert {test.family for test in tests.values()} == {6}
    smallest = min((test for test in tests.values() if test.p is not None), key=lambda test: test.p or 0.0)
    assert smallest.p_holm == pytest.approx(6 * (smallest.p or math.nan))


def test_tests_need_two_common_seeds(tmp_path: Path) -> None:
    comparison = two_arms(tmp_path, [1.0, 2.0, None, 3.0], [None, 2.5, 3.0, None])
    (test,) = paired_tests(comparison, TOKEN)
    assert (test.n, test.difference, test.low, test.p, test.p_holm) == (1, -0.5, None, None, None)
    assert test.verdict == "no test: one common seed"


def test_only_common_seeds_are_paired(tmp_path: Path) -> None:
    comparison = two_arms(tmp_path, [1.0, 2.0, 9.0, 3.0], [1.1, 2.3, None, 3.1])
    (test,) = paired_tests(comparison, TOKEN)
    assert test.n == 3
    assert test.p == pytest.approx(stats.ttest_rel([1.0, 2.0, 3.0], [1.1, 2.3, 3.1]).pvalue)


def test_without_variance_there_is_no_certainty(tmp_path: Path) -> None:
    (same,) = paired_tests(two_arms(tmp_path / "a", [1.1, 2.2, 3.3], [1.1, 2.2, 3.3]), TOKEN)
    assert (same.p, same.p_holm, same.verdict) == (1.0, 1.0, "no difference shown")
    (shifted,) = paired_tests(two_arms(tmp_path / "b", [1.1, 2.2, 3.3], [1.2, 2.3, 3.4]), TOKEN)
    assert (shifted.p, shifted.p_holm) == (None, None)
    assert shifted.verdict == "no test: every seed differs by the same amount"


def test_any_arm_may_be_asked_for(tmp_path: Path) -> None:
    comparison = read_comparison(write_comparison(tmp_path))
    tests = paired_tests(comparison, TOKEN, "hard@wall_clock")
    assert len(tests) == 6
    assert {test.verdict for test in tests} == {"worse"}
    others = paired_tests(comparison, TOKEN, LARGE)
    assert LARGE not in {test.baseline for test in others}
    assert {test.family for test in others} == {5}
    with pytest.raises(InputError, match="'nobody'"):
        paired_tests(comparison, TOKEN, "nobody")


def test_a_plan_without_the_reference_has_no_tests(tmp_path: Path) -> None:
    plan = make_plan(arms=[LARGE, SMALL])
    assert paired_tests(read_comparison(write_comparison(tmp_path, plan)), TOKEN) == ()


def test_a_task_that_some_runs_lack_is_tested_on_those_that_have_it(tmp_path: Path) -> None:
    plan = make_plan(arms=[CORESET, SMALL])
    lines = make_lines(plan)
    for line in lines[:2]:
        del line["final"]["tasks"]
    comparison = read_comparison(write_comparison(tmp_path, plan, lines))
    assert [paired_tests(comparison, metric)[0].n for metric in metrics(comparison)] == [5, 5, 5, 4]


@pytest.mark.parametrize(
    "target, expected", [(3.0, 0.0), (2.5, 5.0), (2.0, 10.0), (1.9, 17.5), (1.0, 25.0), (0.5, None)]
)
def test_a_loss_is_reached_by_linear_interpolation(target: float, expected: float | None) -> None:
    """From 3 to 2 within 10, up to 2.2 at 15, down to 1 at 25; the first time counts."""
    assert first_reached([0.0, 10.0, 15.0, 25.0], [3.0, 2.0, 2.2, 1.0], target) == pytest.approx(expected)


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=8),
    st.floats(0, 10),
)
def test_what_is_reached_lies_on_the_curve(losses: list[float], target: float) -> None:
    spent = [float(i) for i in range(len(losses))]
    found = first_reached(spent, losses, target)
    assert (found is None) == (min(losses) > target)
    if found is not None:
        first = next(i for i, loss in enumerate(losses) if loss <= target)
        assert max(0, first - 1) <= found <= first


def with_curves(folder: Path, curves: dict[str, list[list[float]]], **more: Any) -> Comparison:
    """Token-mean curves at steps 10, 20, ... by arm and seed."""
    plan = make_plan(arms=list(curves), seeds=range(1, 1 + max(map(len, curves.values()))))
    lines = []
    for line in make_lines(plan):
        if line["seed"] > len(curves[line["arm"]]):
            continue
        each = line["seconds"] / line["steps"]
        line["curve"] = [
            {"step": 10 * (i + 1), "seconds": 10 * (i + 1) * each, "token": loss}
            for i, loss in enumerate(curves[line["arm"]][line["seed"] - 1])
        ]
        lines.append(line)
    return read_comparison(write_comparison(folder, plan, lines))


def test_time_to_a_loss_by_hand(tmp_path: Path) -> None:
    """The baseline ends at 2 and 3 after 30 steps. The arm falls from 3 to 1 and from 4 to 2 between 10 and 20 steps,
    and is there after 15, in each seed and in the mean."""
    comparison = with_curves(tmp_path, {CORESET: [[3.0, 1.0], [4.0, 2.0]], SMALL: [[5.0, 4.0, 2.0], [5.0, 4.0, 3.0]]})
    steps = time_to_loss(comparison, CORESET, SMALL, "token", "steps")
    assert steps is not None
    assert (steps.n, steps.reached) == (2, 2)
    assert steps.share == pytest.approx(15 / 30)
    assert (steps.low, steps.high) == (pytest.approx(15 / 30), pytest.approx(15 / 30))
    seconds = time_to_loss(comparison, CORESET, SMALL, "token", "seconds")
    assert seconds is not None
    assert seconds.share == pytest.approx(1.5 * 15 / 30)  # its step takes 1.5 times as long
    assert time_to_loss(comparison, CORESET, SMALL, "token", "tokens") is None  # not in these curves
    assert time_to_loss(comparison, CORESET, SMALL, "example", "steps") is None


def test_not_reached_is_a_value(tmp_path: Path) -> None:
    comparison = with_curves(tmp_path, {CORESET: [[3.0, 2.5], [3.0, 1.0]], SMALL: [[2.0, 1.2], [2.0, 1.2]]})
    found = time_to_loss(comparison, CORESET, SMALL, "token", "steps")
    assert found is not None
    assert found.share is None
    assert (found.n, found.reached) == (2, 1)
    assert found.low == found.high == pytest.approx(19 / 20)


def test_time_to_loss_uses_common_seeds_alone(tmp_path: Path) -> None:
    comparison = with_curves(tmp_path, {CORESET: [[3.0, 1.0]], SMALL: [[5.0, 2.0], [5.0, 0.0]]})
    found = time_to_loss(comparison, CORESET, SMALL, "token", "steps")
    assert found is not None
    assert found.n == 1
    assert found.share == pytest.approx(15 / 20)
    assert (
        time_to_loss(with_curves(tmp_path / "b", {CORESET: [], SMALL: [[1.0]]}), CORESET, SMALL, "token", "steps")
        is None
    )


def test_a_mean_curve_holds_the_steps_that_all_seeds_have(tmp_path: Path) -> None:
    comparison = with_curves(tmp_path, {CORESET: [[3.0, 2.0, 1.0], [5.0, 3.0]]})
    runs = list(comparison.of(CORESET).values())
    curve = mean_curve(runs, "steps", "token")
    assert curve is not None
    assert (curve.seeds, curve.spent) == (2, (10.0, 20.0))
    assert [loss.mean for loss in curve.losses] == [4.0, 2.5]
    assert mean_curve([], "steps", "token") is None
    assert mean_curve(runs, "flops", "token") is None


def test_without_scipy_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = read_comparison(write_comparison(tmp_path))
    ordinary = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "scipy":
            raise ImportError(name)
        return ordinary(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'corebatch\[bench\]'"):
        paired_tests(comparison, TOKEN)
