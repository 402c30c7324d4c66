"""What was expected of arms against what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

from corebatch.bench.runs.comparison import Comparison, Promise, Run
from corebatch.bench.runs.statistics import time_to_loss
from corebatch.rendering.formats import NOTHING, clean, listing
from corebatch.rendering.sheet import Sheet

CLOSE = 1.25
"""A factor is met that is off by no more than this."""
_EACH = {"seconds a step": "steps", "seconds a token": "tokens_trained"}
"""What a factor may be of -> what a run's seconds are divided by."""
_AXES = {f"{name} to the same loss": axis for name, axis in (("seconds", "seconds"), ("steps", "steps"))}
_AXES |= {f"{name} to the same loss": axis for name, axis in (("tokens", "tokens"), ("FLOPs", "flops"))}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredFactor:
    """A promise and what came of it.

    Attributes:
        factor: of the arm over the other; None where it was not measured, or the loss was not reached.
        low, high: least and greatest of single seeds; None where there are none.
        said: why there is no factor.
    """

    promise: Promise
    factor: float | None = None
    low: float | None = None
    high: float | None = None
    said: str = ""

    @property
    def ratio(self) -> float | None:
        """Measured over expected."""
        return None if self.factor is None else self.factor / self.promise.factor

    @property
    def close(self) -> bool | None:
        """Whether it is off by no more than CLOSE."""
        return None if self.ratio is None else abs(math.log(self.ratio)) <= math.log(CLOSE)

    @property
    def same_sign(self) -> bool | None:
        """Whether both say faster, or both slower; None where the promise's interval has both."""
        low, high = self.promise.low, self.promise.high
        if self.factor is None or (low is not None and high is not None and low <= 1 <= high):
            return None
        return (self.factor < 1) == (self.promise.factor < 1)


def measured(comparison: Comparison) -> list[MeasuredFactor]:
    """Of each promise in the plan."""
    return [_measured(comparison, promise) for promise in comparison.plan.promises]


def _measured(comparison: Comparison, promise: Promise) -> MeasuredFactor:
    if promise.of in _EACH:
        ours, theirs = (_seconds_each(comparison, name, _EACH[promise.of]) for name in (promise.arm, promise.against))
        if ours is None or theirs is None:
            return MeasuredFactor(promise=promise, said="no run yet")
        return MeasuredFactor(promise=promise, factor=ours / theirs)
    if promise.of not in _AXES:
        return MeasuredFactor(promise=promise, said="nothing that a comparison measures")
    mean, axis = comparison.plan.means[0], _AXES[promise.of]
    found = time_to_loss(comparison, promise.arm, promise.against, mean, axis)
    if found is None:
        return MeasuredFactor(promise=promise, said="no common seed with curves")
    said = "" if found.share is not None else "not reached"
    return MeasuredFactor(promise=promise, factor=found.share, low=found.low, high=found.high, said=said)


def _seconds_each(comparison: Comparison, name: str, per: str) -> float | None:
    """Of a step or a token, on average over the runs, what precedes the first step left out; without runs, the plan's
    of a step in the first epoch."""
    arm, runs = comparison.plan.arm(name), list[Run](comparison.of(name).values())
    before = 0.0 if arm is None else arm.preparation_seconds
    each = [(run.seconds - before) / getattr(run, per) for run in runs if run.seconds is not None and getattr(run, per)]
    if each:
        return fmean(each)
    return arm.seconds_per_step[0] if arm is not None and arm.seconds_per_step and per == "steps" else None


def promises_sheet(comparison: Comparison) -> Sheet | None:
    """A row for each promise; None without any advice."""
    plan, found = comparison.plan, measured(comparison)
    if not found and not plan.without_arm:
        return None
    known = [one for one in found if one.ratio is not None]
    signs = [one.same_sign for one in found if one.same_sign is not None]
    caption = (
        f"A factor is the arm's over the other's, below 1 faster; losses by the {plan.means[0]} mean. Of {len(known)} "
        f"measured, {sum(bool(one.close) for one in known)} are within a factor of {CLOSE:g}; of {len(signs)} with a "
        f"sign, {sum(signs)} have the right one. What was expected was read before the first run. Intervals: of what "
        "was expected as the advice has them, of what was measured the least and the greatest of single seeds."
    )
    if plan.without_arm:
        caption += f" No arm pulls these levers alone: {listing([clean(name) for name in plan.without_arm], most=12)}."
    return Sheet(
        title="Expected by the advice against measured",
        header=("lever", "arm", "against", "of", "expected", "measured", "measured / expected", "verdict"),
        rows=tuple(_row(one) for one in found),
        caption=caption,
    )


def _row(one: MeasuredFactor) -> tuple[str, ...]:
    promise = one.promise
    said = {True: "right sign", False: "wrong sign", None: "no sign expected"}[one.same_sign]
    verdict = one.said if one.ratio is None else f"{'met' if one.close else 'off'}, {said}"
    names = (clean(promise.lever), clean(promise.arm), clean(promise.against), clean(promise.of))
    ratio = NOTHING if one.ratio is None else f"{one.ratio:.2f}"
    return (*names, _factor(promise.factor, promise), _factor(one.factor, one), ratio, verdict)


def _factor(factor: float | None, ends: Promise | MeasuredFactor) -> str:
    if factor is None:
        return NOTHING
    if ends.low is None or ends.high is None:
        return f"{factor:.2f}"
    return f"{factor:.2f} ({ends.low:.2f} to {ends.high:.2f})"
