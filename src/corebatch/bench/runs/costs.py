"""What a step of each arm costs, and how many steps a budget buys."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from corebatch.bench.timing import Spread, ratios


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Seconds or FLOPs of one step, in the first pass over the data and after it.

    Attributes:
        first, later: of a step.
        epoch: steps of a pass.
        before: of what precedes the first step.
    """

    first: float
    later: float
    epoch: float
    before: float = 0.0

    def of(self, steps: float) -> float:
        """Of so many steps."""
        early = min(steps, self.epoch)
        return self.before + early * self.first + (steps - early) * self.later

    def affords(self, budget: float) -> int:
        """The most whole steps that cost no more than the budget; 0 where what precedes them does."""
        early, left = self.epoch * self.first, max(0.0, budget - self.before)
        steps = left / self.first if left <= early else self.epoch + (left - early) / self.later
        whole = int(steps + 1e-6)
        return whole - 1 if whole and self.of(whole) > budget * (1 + 1e-9) else whole


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCost:
    """What a step of a method costs.

    Attributes:
        positions: that it computes, padding included, scored and trained; None where no line tells them.
        spread: standard deviation of one step's positions, as a share of their mean.
        error: standard error of its seconds over the reference's, as a share; None where one round alone was timed.
    """

    seconds: StepCost
    flops: StepCost
    positions: StepCost | None = None
    spread: float = 0.0
    error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPositions:
    """Positions of a step of a method, in the first pass over the data and later: their mean over many steps, its
    standard error and the standard deviation of a single step, both as shares of the mean."""

    mean: tuple[float, float]
    error: float
    spread: float

    @classmethod
    def of(cls, line: Mapping[str, Any] | None, timed: Sequence[Mapping[str, Any]]) -> StepPositions | None:
        """As they were counted (`line`), else as they were in the steps that were timed; None where neither tells."""
        if line is not None:
            first, later = line["positions"]
            return cls(mean=(first, later), error=line["error"], spread=line["spread"])
        rounds = [found["positions"] for found in timed if found.get("positions")]
        if not rounds:
            return None
        single = [positions for found in timed for _, positions in found["steps"]]
        means = [statistics.mean(each) for each in rounds]
        return cls(
            mean=(statistics.mean(first for first, _ in rounds), statistics.mean(later for _, later in rounds)),
            error=relative_error(means),
            spread=statistics.pstdev(single) / statistics.mean(single),
        )


def relative_error(values: Sequence[float]) -> float:
    """Standard error of their mean, as a share of it; infinite of one value, which tells none."""
    if len(values) < 2:
        return math.inf
    return statistics.stdev(values) / math.sqrt(len(values)) / statistics.mean(values)


def side_by_side(
    lines: Sequence[Mapping[str, Any]], reference: str, positions: Mapping[str, StepPositions | None]
) -> dict[str, tuple[float, float, float | None]]:
    """Seconds of a step by method, first and later: the median over rounds of the ratio to the reference in the same
    round, times the median of the reference. And the standard error of the ratio, as a share: by its spread over
    rounds and by what is not known of positions; None of a single round.

    A ratio is taken within a round, so that what else the machine did cancels. The reference's own unit is its later
    step's mean with the first's: one number a round. Few steps are timed, and their rows may be longer or shorter than
    those of a run: seconds are moved to `positions` by how they grow with them.
    """
    rounds: dict[int, dict[str, list[float]]] = {}
    methods = dict.fromkeys(line["method"] for line in lines)
    unseen = {}
    for name in methods:
        own = [line for line in lines if line["method"] == name]
        (constant, slope_error), known = _constant_part(own), positions.get(name)
        unseen[name] = _unseen(own, slope_error, known)
        for line in own:
            rounds.setdefault(line["round"], {})[name] = _moved(line, constant, known)
    whole = [found for found in rounds.values() if reference in found]
    base = statistics.median(statistics.mean(found[reference]) for found in whole)
    made = {}
    for name in methods:
        own_rounds = [found for found in whole if name in found]
        units = [statistics.mean(found[reference]) for found in own_rounds]
        first, later = (Spread.of(ratios([found[name][k] for found in own_rounds], units)) for k in (0, 1))
        spread = relative_error(ratios([statistics.mean(found[name]) for found in own_rounds], units))
        of_positions = [known.error for each in {name, reference} if (known := positions.get(each)) is not None]
        moved = [unseen[each] for each in {name, reference}]
        error = math.hypot(spread, *of_positions, *moved)
        made[name] = first.value * base, later.value * base, error if math.isfinite(error) else None
    return made


def _constant_part(lines: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """What a step takes whatever it computes, as so many positions: c of seconds ~ c + positions, by least squares
    within rounds, of which each has a machine of its own speed. 0 where seconds grow faster than positions; infinite
    where they do not grow with them, or steps have none. And the standard error of the share by which a position more
    adds to a step's seconds."""
    squares = above = below = left = 0.0
    count = 0
    for line in lines:
        if len(steps := line.get("steps") or ()) > 1:
            seconds, mean = (statistics.mean(column) for column in zip(*steps, strict=True))
            common = sum((s / seconds - 1) * (p - mean) for s, p in steps)  # = squares / (c + mean)
            own = sum((p - mean) ** 2 for _, p in steps)
            squares, above, below = squares + own, above + own - common * mean, below + common
            left += sum((s / seconds - 1) ** 2 for s, _ in steps)
            count += len(steps) - 1
    if squares == 0 or count < 2:
        return math.inf, math.inf
    error = math.sqrt(max(0.0, left - below**2 / squares) / (count - 1) / squares)
    return max(0.0, above / below) if below > 0 else math.inf, error


def _unseen(lines: Sequence[Mapping[str, Any]], error: float, known: StepPositions | None) -> float:
    """Standard error, as a share, of seconds that are moved to positions that are `known`; at most what they would
    change by if they were in proportion to positions."""
    rounds = [line["positions"] for line in lines if line.get("positions")]
    if known is None or not rounds:
        return 0.0
    here = statistics.mean(map(statistics.mean, rounds))
    far = abs(statistics.mean(known.mean) - here)
    return min(error * far, far / here) if far else 0.0


def _moved(line: Mapping[str, Any], constant: float, known: StepPositions | None) -> list[float]:
    """Seconds of a step, first and later, at the positions that are known."""
    found = line["seconds"]
    if known is None or not line.get("positions") or math.isinf(constant):
        return list(found)
    return [
        seconds * (constant + wanted) / (constant + here)
        for seconds, here, wanted in zip(found, line["positions"], known.mean, strict=True)
    ]


def step_means(steps: Sequence[float], epoch: int, remembers: bool) -> tuple[float, float]:
    """Mean of a step in the first pass and after it, of what each step took or had.

    Args:
        steps: without the first one, which also holds checks and the warm-up of kernels.
        epoch: steps of a pass.
        remembers: whether the passes differ; else both numbers are the mean over all steps.
    """
    early, late = steps[: epoch - 1], steps[epoch - 1 :]
    if not remembers or not early or not late:
        mean = statistics.mean(steps)
        return mean, mean
    return statistics.mean(early), statistics.mean(late)


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], products: int) -> int:
    batch, heads, length, size = query
    return products * batch * heads * length * key[-2] * (size + value[-1]) // 2 * 2


def _attention_forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return _attention(query, key, value, 2)


def _attention_backward(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    return _attention(query, key, value, 5)


def flop_counter() -> FlopCounterMode:
    """Counts the multiplications and additions of matrix products and attention that really run: padding, scoring and
    recomputation included. PyTorch's counter lacks attention on CPUs."""
    names = {
        "_scaled_dot_product_flash_attention_for_cpu": _attention_forward,
        "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    }
    own: dict[Any, Any] = {
        getattr(torch.ops.aten, name): count for name, count in names.items() if hasattr(torch.ops.aten, name)
    }
    return FlopCounterMode(display=False, custom_mapping=own)


def row_tokens(batch: Mapping[str, Tensor]) -> list[int]:
    """Tokens of each row, without padding."""
    mask = batch.get("attention_mask")
    if mask is None:
        return [batch["input_ids"].shape[1]] * len(batch["input_ids"])
    return [int(n) for n in mask.sum(dim=1).tolist()]
