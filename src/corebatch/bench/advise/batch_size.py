"""What the noise scale says of the batch: whether noise binds, and whether another one reaches the same loss sooner.

A run of B rows a step takes 1 + B / B_crit times the fewest rows to a given loss (McCandlish et al. 2018, arXiv
1812.06162, equation 2.11), with the noise scale for B_crit. A step costs what its rows cost and the update of the
weights, which is its share o of a step as configured, so that B' rows in place of B take

    (1 + B' / B_crit) / (1 + B / B_crit) (1 - o + o B / B')  times the seconds

There are two scales: that of the gradients themselves, which the paper compared with whole runs, and that in the metric
of the optimizer, by which the errors of a step are judged here. They can be far apart, and neither is known to be the
critical batch size. So what is said of noise, and what is recommended because of it, holds by both.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from corebatch.bench.advise.costs import steps_of_run
from corebatch.bench.advise.finding import TO_LOSS, Finding
from corebatch.bench.advise.probe import Probe
from corebatch.bench.advise.row_gradients import scaled_by_moments
from corebatch.bench.advise.worth import gain
from corebatch.noise import interval_of_rows, noise_of_rows

LEVER, SMALLER, LARGER, GROWING = "another batch", "a smaller batch", "a larger batch", "a batch that grows"
MOST_TIMES = 8
"""The batch as configured over the smallest one that is looked at, and the largest over it."""


@dataclass(frozen=True, slots=True)
class MeasuredScale:
    """A noise scale, in rows, and its 95 % interval; infinite where the signal does not show."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, gram_PP: Tensor, sizes: Tensor, seed: int) -> MeasuredScale:
        return cls(noise_of_rows(gram_PP, sizes).scale, *interval_of_rows(gram_PP, sizes, seed=seed))

    def __str__(self) -> str:
        return f"{shown(self.value)} ({shown(self.low)} to {shown(self.high)})"

    def numbers(self) -> dict[str, float | None]:
        """Plain values; None for infinite."""
        found = {"scale": self.value, "low": self.low, "high": self.high}
        return {name: value if math.isfinite(value) else None for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class Scales:
    """The noise scale of the gradients themselves, and in the metric of the optimizer: None where that is the same."""

    raw: MeasuredScale
    own: MeasuredScale | None = None

    @property
    def each(self) -> tuple[MeasuredScale, ...]:
        """That of the optimizer's metric first."""
        return (self.raw,) if self.own is None else (self.own, self.raw)

    def __str__(self) -> str:
        more = "" if self.own is None else f" by the gradients themselves, {self.own} in Adam's metric"
        return f"{self.raw} rows{more}"

    def verdict(self, batch: int) -> str:
        """Whether noise binds, in a sentence."""
        sides = {(batch > one.high) - (batch < one.low) for one in self.each}
        if all(math.isinf(one.low) for one in self.each):
            return f"A batch of {batch} is far below the noise scale, which is beyond what was measured: noise binds."
        if sides == {1}:
            return f"A batch of {batch} is above the noise scale, {self}: make it smaller, selection cannot help."
        if sides == {-1}:
            return (
                f"A batch of {batch} is below the noise scale, {self}: noise of the gradient binds, and what lowers it "
                "at no cost pays."
            )
        if sides == {1, -1}:
            return (
                f"A batch of {batch} is above the noise scale by one measure and below it by the other, {self}: "
                "whether noise binds is not known, and nothing is recommended that does not pay by both."
            )
        if any(math.isinf(one.high) for one in self.each):
            return f"A batch of {batch} is within what is known of the noise scale, {self}: noise may bind."
        side = {frozenset({0}): "near", frozenset({0, 1}): "near or above", frozenset({0, -1}): "near or below"}
        return f"A batch of {batch} is {side[frozenset(sides)]} the noise scale, {self}: its size is right."


def times(batch: int, other: float, scale: float, update: float) -> float:
    """Seconds to the same loss with other rows a step, over those of the batch. update: o."""
    rows = 1.0 if math.isinf(scale) else (scale + other) / (scale + batch)
    return rows * (1 - update + update * batch / other)


def batch_levers(probe: Probe, scales: Scales, later: Mapping[str, MeasuredScale]) -> list[Finding]:
    """Another batch, and one that grows: what they are worth, or why none is.

    Args:
        later: the scale of the gradients themselves by the checkpoint at which it was measured.
    """
    known = [*scales.each, *later.values()]
    findings, start = [_another(probe, scales, known)], _fewest(probe, list(scales.each))
    if start < probe.args.gradient_accumulation_steps:
        findings.append(_growing(probe, scales, later, start))
    return gain(findings, "beginning_only")


def _fewest(probe: Probe, known: list[MeasuredScale]) -> int:
    """Micro-batches of the smallest step that is at no known moment surely below the scale; as configured if none."""
    asked, batch = probe.args.gradient_accumulation_steps, probe.batch_size
    divisor = 1
    while (
        asked % (2 * divisor) == 0
        and 2 * divisor <= MOST_TIMES
        and batch / (2 * divisor) >= max(one.high for one in known)
    ):
        divisor *= 2
    return int(asked // divisor)


def _update(probe: Probe) -> float:
    """The update's share of a step's time; 0 where no step was made."""
    return float(probe.known["optimizer"] / probe.known["step"]) if "optimizer" in probe.known else 0.0


def _another(probe: Probe, scales: Scales, known: list[MeasuredScale]) -> Finding:
    """The batch, of those between the scale and the one that is configured or between this and the scale, of which it
    is surest that it is faster."""
    asked, batch, update = probe.args.gradient_accumulation_steps, probe.batch_size, _update(probe)
    fewest, tried = _fewest(probe, known), list[int]()
    while fewest < asked:
        tried.append(fewest)
        fewest *= 2
    for more in (2, 4, MOST_TIMES):
        if batch * more <= min(one.low for one in known):
            tried.append(asked * more)
    if not tried:
        side = "is not surely above twice the noise scale, nor below half of it"
        if batch >= 2 * max(one.high for one in known):
            side = f"is above twice the noise scale, and its {asked} micro-batches cannot be halved"
        why = f"the batch of {batch} {side}: it stays, and does not grow (coreset.budget)"
        return Finding(lever=LEVER, of=TO_LOSS, why=why)

    def worth(count: int) -> list[float]:
        rows = batch * count / asked
        return [times(batch, rows, end, update) for one in scales.each for end in (one.value, one.low, one.high)]

    count = min(tried, key=lambda count: max(worth(count)))
    rows, ends = batch * count // asked, worth(count)
    why = f"the noise scale is {scales}; the update is {100 * update:.2g} % of a step"
    if count < asked:
        why += f"; with {rows} rows a step in place of {batch} a run sees fewer until it is as good, in more steps"
        if len(known) == len(scales.each):
            why += "; the scale grows in a run, so that this is for its beginning (--checkpoints tell the rest)"
    else:
        why += f"; steps of {rows} rows are fewer, and save no more than their updates"
    return Finding(
        lever=SMALLER if count < asked else LARGER, arm=_keys(probe, count), factor=ends[0], low=min(ends),
        high=max(ends), of=TO_LOSS, why=why,
        numbers={
            "rows_of_a_step": rows, "update": update,
            "beginning_only": float(count < asked and len(known) == len(scales.each)),
        },
    )  # fmt: skip


def _keys(probe: Probe, count: int) -> dict[str, Any]:
    """That set so many micro-batches a step: the learning rate goes with the batch's root (Adam) or with it, and steps
    are counted so that as many rows are read."""
    args = probe.args
    times = count / args.gradient_accumulation_steps
    power = 0.5 if scaled_by_moments(args) else 1.0
    keys = {"gradient_accumulation_steps": count, "learning_rate": float(f"{args.learning_rate * times**power:.3g}")}
    steps = {name: getattr(args, name, 0) for name in ("max_steps", "warmup_steps")}
    return keys | {name: max(1, round(value / times)) for name, value in steps.items() if value >= 1}


# ---- growing ---------------------------------------------------------------------------------------------------------


def _growing(probe: Probe, scales: Scales, later: Mapping[str, MeasuredScale], start: int) -> Finding:
    """From the smallest batch that is surely above the scale now to the one that is configured, in a straight line.

    Args:
        start: micro-batches of its first steps.
    """
    coreset, asked, batch = probe.settings.coreset, probe.args.gradient_accumulation_steps, probe.batch_size
    named = {re.fullmatch(r"checkpoint-0*([1-9]\d*)", name): one for name, one in later.items()}
    steps = {int(found[1]): one for found, one in named.items() if found}
    if coreset.budget is not None or coreset.sampling is not None or coreset.by_length is not None:
        return Finding(lever=GROWING, unmeasured="the config plans the rows of steps otherwise")
    if not steps or not scaled_by_moments(probe.args):
        need = "--checkpoints of a run tell how the scale grows" if not steps else "its rate is told for Adam alone"
        return Finding(lever=GROWING, unmeasured=f"from {batch * start // asked} to {batch} rows a step: {need}")
    total = max(*steps, steps_of_run(probe) or 0)
    moments = {0.0: scales.raw} | {step / total: one for step, one in steps.items()}
    until = min((step / total for step, one in steps.items() if one.high >= batch), default=1.0)
    most, update = asked / start, _update(probe)

    def mean(end: str) -> float:
        rows = {place: batch / most * (1 + (most - 1) * min(1.0, place / until)) for place in moments}
        return statistics.mean(times(batch, rows[place], getattr(one, end), update) for place, one in moments.items())

    ends = [mean(end) for end in ("value", "low", "high")]
    budget = {"ramp": {"most": most, "until": round(until, 3), "learning_rate": "sqrt"}}
    return Finding(
        lever=GROWING, arm={**_keys(probe, start), "coreset.budget": budget}, factor=ends[0], low=min(ends),
        high=max(ends), of=TO_LOSS, numbers={"rows_of_a_step": batch * start // asked, "beginning_only": 0.0},
        why=f"from {batch * start // asked} to {batch} rows a step over {100 * until:.2g} % of the run, by the noise "
        f"scale at {len(moments)} moments; no training study of such batches has been made",
    )  # fmt: skip


def shown(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if math.isfinite(value) else "infinite"
