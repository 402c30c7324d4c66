"""What a step of each arm costs, and how many steps a budget buys."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
    """What a step of a method costs."""

    seconds: StepCost
    flops: StepCost


def side_by_side(lines: Sequence[Mapping[str, Any]], reference: str) -> dict[str, tuple[float, float]]:
    """Seconds of a step by method, first and later: the median over rounds of the ratio to the reference in the same
    round, times the median of the reference.

    A ratio is taken within a round, so that what else the machine did cancels. The reference's own unit is its later
    step's mean with the first's: one number a round.
    """
    rounds: dict[int, dict[str, Mapping[str, Any]]] = {}
    for line in lines:
        rounds.setdefault(line["round"], {})[line["method"]] = line
    whole = [found for found in rounds.values() if reference in found]

    def unit(found: Mapping[str, Mapping[str, Any]]) -> float:
        return (found[reference]["seconds"][0] + found[reference]["seconds"][1]) / 2

    base = statistics.median(unit(found) for found in whole)
    methods = dict.fromkeys(name for found in whole for name in found)
    made = {}
    for name in methods:
        own = [found for found in whole if name in found]
        units = [unit(found) for found in own]
        first, later = (Spread.of(ratios([found[name]["seconds"][k] for found in own], units)) for k in (0, 1))
        made[name] = first.value * base, later.value * base
    return made


def step_seconds(stamps: Sequence[float], epoch: int, remembers: bool) -> tuple[float, float]:
    """Mean seconds of a step in the first pass and after it, from the times at which steps ended.

    The first step, which also holds checks and the warm-up of kernels, is left out. Where both passes cost the same,
    both numbers are the mean over all steps.
    """
    steps = [after - before for before, after in pairwise(stamps)]
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
