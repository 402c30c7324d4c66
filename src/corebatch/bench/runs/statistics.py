"""Means, intervals, paired tests, and what a loss costs. Needs scipy: pip install 'corebatch[bench]'.

Runs of two arms with the same seed share data order and initial weights, so tests are paired by seed. All tests are
two-sided. With a handful of seeds a t-test rests on differences that are about normal; nothing here can check that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import Any

from corebatch.bench.runs.comparison import MEANS, Comparison, Point, Run
from corebatch.errors import InputError, MissingExtraError

LEVEL = 0.95
_TINY = 1e-12  # spread below this share of the values is rounding


def distributions() -> Any:
    """`scipy.stats`. Raises MissingExtraError: scipy is not installed."""
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingExtraError("The statistics of a comparison need scipy: pip install 'corebatch[bench]'") from error
    return stats


@dataclass(frozen=True, slots=True)
class Metric:
    """A final number of a run: a held-out loss by one of its means (nats a token), or a task's accuracy (a share)."""

    name: str
    task: bool = False

    @property
    def title(self) -> str:
        return self.name if self.task else f"{self.name} mean"

    def of(self, run: Run) -> float | None:
        """The run's value; None where it was not measured."""
        if run.final is None:
            return None
        return (run.final.tasks if self.task else run.final.losses).get(self.name)

    def better(self, difference: float) -> bool:
        """Whether the difference is an improvement: losses should fall, accuracies rise."""
        return difference > 0 if self.task else difference < 0


LOSSES = tuple(Metric(name) for name in MEANS)


def losses(comparison: Comparison) -> tuple[Metric, ...]:
    """The means of the held-out loss, what the reference's objective is about first."""
    return tuple(Metric(name) for name in comparison.plan.means)


def metrics(comparison: Comparison) -> tuple[Metric, ...]:
    """The means of the held-out loss, then the tasks."""
    return (*losses(comparison), *(Metric(name, task=True) for name in comparison.tasks))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over `n` seeds with its 95 % t interval, which needs two of them (else None)."""

    n: int
    mean: float
    low: float | None
    high: float | None


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and Student's interval for it; None for no values. Without spread the interval is the mean."""
    n = len(values)
    if n == 0:
        return None
    mean = fmean(values)
    if n == 1:
        return Estimate(n=1, mean=mean, low=None, high=None)
    reach = _quantile(n - 1) * _spread(values) / math.sqrt(n)
    return Estimate(n=n, mean=mean, low=mean - reach, high=mean + reach)


def _spread(values: Sequence[float]) -> float:
    """The standard deviation of a sample; the standard library's works in fractions and takes 20 times as long."""
    mean = fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


@cache
def _quantile(freedom: int) -> float:
    """Student's, for a two-sided interval; kept, since scipy takes longer for it than all else here."""
    return float(distributions().t.ppf((1 + LEVEL) / 2, freedom))


def values(comparison: Comparison, arm: str, metric: Metric) -> dict[int, float]:
    """By seed, of the arm's comparable runs that measured it."""
    found = {seed: metric.of(run) for seed, run in comparison.of(arm).items()}
    return {seed: value for seed, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """An arm against a baseline in one metric, over their common seeds.

    Attributes:
        n: common seeds.
        difference: mean of (arm - baseline); None without a common seed.
        low, high: its 95 % interval, not corrected for several baselines.
        p: two-sided; None where no test can be made.
        p_holm: after Holm's correction over `family` baselines.
        verdict: "better", "worse", "no difference shown", or why there is no test.
    """

    arm: str
    baseline: str
    metric: Metric
    n: int
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    family: int
    verdict: str


def paired_tests(comparison: Comparison, metric: Metric, arm: str | None = None) -> tuple[PairedTest, ...]:
    """Paired t-tests of an arm (the reference by default) against each baseline, in the plan's order.

    Holm's correction counts all baselines of the plan, also those that cannot be tested (yet): a comparison does not
    become more certain because a baseline failed. Empty where the plan has no reference arm. Raises InputError: the
    plan has no arm of that name; MissingExtraError: scipy is not installed.
    """
    plan = comparison.plan
    if arm is None:
        if plan.reference_arm is None:
            return ()
        arm = plan.reference_arm.name
    elif plan.arm(arm) is None:
        names = ", ".join(each.name for each in plan.arms)
        raise InputError(f"An arm of the plan was expected: {names}. Found {arm!r}.")
    others = [baseline.name for baseline in plan.baselines if baseline.name != arm]
    ours = values(comparison, arm, metric)
    tests = [_test(arm, other, metric, ours, values(comparison, other, metric), len(others)) for other in others]
    corrected = iter(holm([1.0 if test.p is None else test.p for test in tests]))
    return tuple(
        _judged(test, p_holm) if test.p is not None else test for test, p_holm in zip(tests, corrected, strict=True)
    )


def _test(
    arm: str, baseline: str, metric: Metric, ours: Mapping[int, float], theirs: Mapping[int, float], family: int
) -> PairedTest:
    seeds = sorted(ours.keys() & theirs.keys())
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    found = estimate(differences)
    size = max((abs(value) for seed in seeds for value in (ours[seed], theirs[seed])), default=0.0)
    p: float | None = None
    if found is None:
        verdict = "no test: no common seed"
    elif found.n < 2:
        verdict = "no test: one common seed"
    elif _spread(differences) <= _TINY * size:
        same = abs(found.mean) <= _TINY * size
        p = 1.0 if same else None
        verdict = "" if same else "no test: every seed differs by the same amount"
    else:
        verdict = ""
        t = found.mean / (_spread(differences) / math.sqrt(found.n))
        p = float(2 * distributions().t.sf(abs(t), found.n - 1))
    return PairedTest(
        arm=arm,
        baseline=baseline,
        metric=metric,
        n=len(seeds),
        difference=None if found is None else found.mean,
        low=None if found is None else found.low,
        high=None if found is None else found.high,
        p=p,
        p_holm=None,
        family=family,
        verdict=verdict,
    )


def _judged(test: PairedTest, p_holm: float) -> PairedTest:
    shown = p_holm < 1 - LEVEL and test.difference is not None
    better = test.difference is not None and test.metric.better(test.difference)
    verdict = ("better" if better else "worse") if shown else "no difference shown"
    return replace(test, p_holm=p_holm, verdict=verdict)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values of Holm's step-down procedure (Holm 1979, A simple sequentially rejective multiple test
    procedure): the k-th smallest of m times m - k + 1, never below the one before, at most 1."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanCurve:
    """A loss averaged over seeds at the steps that all of them share, with what was spent until then."""

    seeds: int
    spent: tuple[float, ...]
    losses: tuple[Estimate, ...]


def mean_curve(runs: Sequence[Run], axis: str, mean: str) -> MeanCurve | None:
    """The mean curve of runs of one arm; None where they share no measured step."""
    count, spent, losses = _shared(runs, axis, mean)
    found = [estimate(each) for each in losses]
    if not spent:
        return None
    return MeanCurve(
        seeds=count, spent=tuple(map(fmean, spent)), losses=tuple(loss for loss in found if loss is not None)
    )


def _shared(runs: Sequence[Run], axis: str, mean: str) -> tuple[int, list[list[float]], list[list[float]]]:
    """How many runs have a curve, and what each had spent and lost at each step that all of these share."""
    curves = [{p.step: p for p in run.curve if axis in p.spent and mean in p.losses} for run in runs]
    curves = [curve for curve in curves if curve]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    spent = [[curve[step].spent[axis] for curve in curves] for step in steps]
    return len(curves), spent, [[curve[step].losses[mean] for curve in curves] for step in steps]


def first_reached(spent: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """What was spent when the loss first fell to the target, by linear interpolation between points; None if it never
    did. A first point below the target gives what was spent there, an upper bound."""
    for i, loss in enumerate(losses):
        if loss <= target:
            if i == 0:
                return spent[i]
            share = (losses[i - 1] - target) / (losses[i - 1] - loss)
            return spent[i - 1] + share * (spent[i] - spent[i - 1])
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What an arm spends to reach a baseline's last loss, as a share of what the baseline spends.

    Losses are those of curves, on the same held-out rows for both.

    Attributes:
        share: of the mean curves over the common seeds; None where the arm's does not reach it.
        n, reached: common seeds, and in how many the seed's own curve reaches its own baseline's last loss.
        low, high: least and greatest share over the seeds that reach it.
    """

    share: float | None
    n: int
    reached: int
    low: float | None
    high: float | None


def time_to_loss(comparison: Comparison, arm: str, baseline: str, mean: str, axis: str) -> Reach | None:
    """What the arm spends to reach the baseline's last loss; None without a common seed that has both curves.

    Args:
        mean: one of the plan's.
        axis: one of AXES: what is spent.
    """
    ours, theirs = comparison.of(arm), comparison.of(baseline)
    pairs = [
        (ours[seed], theirs[seed])
        for seed in ours
        if seed in theirs and all(_points(run, axis, mean) for run in (ours[seed], theirs[seed]))
    ]
    together = _share([a for a, _ in pairs], [b for _, b in pairs], axis, mean)
    if together is None:
        return None
    found = [share[0] for a, b in pairs if (share := _share([a], [b], axis, mean)) is not None]
    shares = [share for share in found if share is not None]
    ends = min(shares, default=None), max(shares, default=None)
    return Reach(share=together[0], n=len(pairs), reached=len(shares), low=ends[0], high=ends[1])


def _points(run: Run, axis: str, mean: str) -> list[Point]:
    return [point for point in run.curve if axis in point.spent and mean in point.losses]


def _share(ours: Sequence[Run], theirs: Sequence[Run], axis: str, mean: str) -> tuple[float | None] | None:
    """The share in a tuple, None in it for "not reached"; None where a curve is missing or the baseline is free."""
    (_, our_spent, our_losses), (_, their_spent, their_losses) = (_shared(r, axis, mean) for r in (ours, theirs))
    if not our_spent or not their_spent or fmean(their_spent[-1]) <= 0:
        return None
    spent = first_reached([*map(fmean, our_spent)], [*map(fmean, our_losses)], fmean(their_losses[-1]))
    return (None if spent is None else spent / fmean(their_spent[-1]),)
