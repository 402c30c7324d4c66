"""Calibrated sampling: a balanced sample whose weights are then moved towards meeting the mean.

Shape suffixes: N rows of the large batch, M rows of the small batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from corebatch.selectors.balanced import balance
from corebatch.selectors.base import Problem
from corebatch.selectors.checks import check_number
from corebatch.selectors.kernels.calibration import DEFAULT_MAX_WEIGHT, DEFAULT_RIDGE, LOWEST_RIDGE
from corebatch.selectors.kernels.inclusion import (
    DEFAULT_FLOOR,
    systematic_sample,
)
from corebatch.selectors.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class Calibrated(Sampler):
    """The rows of `balanced`, with weights a_i M / (N pi_i) whose factors a_i are found by ridge regression.

    Minimises ||sum_S a_i f_i / (N pi_i) - mean f||^2 + lambda sum_S (a_i - 1)^2: calibration of survey sampling
    (Deville, Saerndal 1992; with ridge, Chambers 1996). Two totals are kept nearly exactly: the mean weight, 1,
    and the length along the large batch's mean. Weights are bounded to [0, max_weight]: those that leave it
    are set to the bound and the others are solved for again. Nearer to the mean than `balanced` in one step,
    and more biased, the more so the smaller the budget. The same as `balanced` with `calibrate`.

    Args:
        ridge: lambda, as a share of the mean squared norm of the chosen f_i / (N pi_i); above 0.
        max_weight: the largest weight, at least 1. 11 is what `floor` 0.1 allows without calibration.
        floor, cost_power: as in `importance`.

    Raises:
        ConfigError: an option is out of range.
    """

    ridge: float = DEFAULT_RIDGE
    max_weight: float = DEFAULT_MAX_WEIGHT
    floor: float = DEFAULT_FLOOR
    cost_power: float | None = None

    name: ClassVar[str] = "calibrated"

    def __post_init__(self) -> None:
        check_number("ridge", self.ridge, low=LOWEST_RIDGE)
        check_number("max_weight", self.max_weight, low=1.0)
        super().__post_init__()

    @property
    def calibrate(self) -> float:
        return self.ridge

    def _draw(self, problem: Problem, inclusion_N: Tensor) -> Tensor:
        start = systematic_sample(inclusion_N, problem.budget, problem.generator)
        return balance(problem.features, inclusion_N, start, problem.budget)
