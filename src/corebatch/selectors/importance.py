"""Importance sampling: inclusion in proportion to the feature's norm, weights M / (N pi)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from corebatch.selectors.base import Choice, Selector
from corebatch.selectors.kernels.calibration import check_calibrate, sample_weights
from corebatch.selectors.kernels.inclusion import DEFAULT_FLOOR, check_floor, inclusion_probabilities, systematic_sample


@dataclass(frozen=True, kw_only=True)
class Importance(Selector):
    """Draw exactly M rows, each with probability in proportion to its norm; unbiased.

    Horvitz, Thompson 1952 for the weights; Katharopoulos, Fleuret 2018 (arXiv 1803.00942) for gradients.
    Without replacement, by systematic sampling on randomly ordered rows: the size is fixed and every row's
    probability is met exactly.

    Args:
        floor: norms below this share of the mean norm are raised to it, 0.001 to 1. A weight is at most
            (1 + floor) / floor, so 0.1 bounds the weights by 11 and changes few probabilities.
        calibrate: move the weights towards meeting the mean, as `calibrated` does: True, or a ridge in place of its
            default. Nearer in one step, and no longer unbiased.

    Raises:
        ConfigError: an option is out of range.
    """

    floor: float = DEFAULT_FLOOR
    calibrate: bool | float = False

    name: ClassVar[str] = "importance"
    requires: ClassVar[frozenset[str]] = frozenset({"features"})
    weighted = True

    def __post_init__(self) -> None:
        check_floor(self.floor)
        check_calibrate(self.calibrate)

    def _choose(
        self,
        features: Tensor,
        budget: int,
        generator: torch.Generator,
        *,
        losses: Tensor | None,
        validation: Tensor | None,
    ) -> Choice:
        inclusion_N = inclusion_probabilities(features, budget, self.floor)
        rows = systematic_sample(inclusion_N, budget, generator)
        return Choice(rows=rows, weights=sample_weights(features, inclusion_N, rows, self.calibrate))
