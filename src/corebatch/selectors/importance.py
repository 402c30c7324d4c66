"""Importance sampling: inclusion in proportion to the feature's norm, weights M / (N pi)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from corebatch.selectors.base import Problem
from corebatch.selectors.kernels.inclusion import DEFAULT_FLOOR, systematic_sample
from corebatch.selectors.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class Importance(Sampler):
    """Draw exactly M rows, each with probability in proportion to its norm; unbiased.

    Horvitz, Thompson 1952 for the weights; Katharopoulos, Fleuret 2018 (arXiv 1803.00942) for gradients.
    Without replacement, by systematic sampling on randomly ordered rows: the size is fixed and every row's
    probability is met exactly.

    Args:
        floor: norms below this share of the mean norm are raised to it, 0.001 to 1; a norm counts in that mean as far
            as it makes a row certain. A weight is at most (1 + floor) / floor, so 0.1 bounds this selector's weights by
            11 and changes few probabilities; what a trainer makes of them has other bounds (`corebatch.batch.weights`).
        calibrate: move the weights towards meeting the mean, as `calibrated` does: True, or a ridge in place of its
            default. Nearer in one step, and no longer unbiased.
        cost_power: p in pi ~ size / cost^p, between 0 and 1, where costs are given; a trainer gives the tokens of a row
            if this is set. None: 0.25 where costs are given.

    Raises:
        ConfigError: an option is out of range.
    """

    floor: float = DEFAULT_FLOOR
    calibrate: bool | float = False
    cost_power: float | None = None

    name: ClassVar[str] = "importance"

    def _draw(self, problem: Problem, inclusion_N: Tensor) -> Tensor:
        return systematic_sample(inclusion_N, problem.budget, problem.generator)
