"""What samplers share: probabilities in proportion to sizes, rows drawn with them, weights M / (N pi).

Shape suffixes: N rows of the large batch, M rows of the small batch.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from corebatch.selectors.base import Choice, Problem, Selector
from corebatch.selectors.checks import check_number
from corebatch.selectors.kernels.calibration import DEFAULT_MAX_WEIGHT, check_calibrate, sample_weights
from corebatch.selectors.kernels.inclusion import DEFAULT_FLOOR, check_floor, inclusion_probabilities

DEFAULT_COST_POWER = 0.25


class Sampler(Selector):
    """A selector that draws rows with inclusion probabilities. Subclasses give `_draw`, and options as fields.

    Attributes:
        floor: as in `importance`.
        max_weight: the largest weight of a calibrated sample.
        cost_power: p in pi ~ size / cost^p, between 0 and 1, where costs are given; a trainer gives them, the tokens of
            a row, if this is set. Where sizes were known exactly, p = 0.5 would have the least variance at a given cost
            (Neyman 1934); None is 0.25.
    """

    floor: float = DEFAULT_FLOOR
    max_weight: float = DEFAULT_MAX_WEIGHT
    cost_power: float | None = None

    requires: ClassVar[frozenset[str]] = frozenset({"features"})
    weighted = True

    @property
    def draws(self) -> bool:
        return True

    @property
    def calibrate(self) -> bool | float:
        """Whether weights are moved towards meeting the mean: a ridge, or True for the default one."""
        return False

    def __post_init__(self) -> None:
        check_floor(self.floor)
        check_calibrate(self.calibrate)
        if self.cost_power is not None:
            check_number("cost_power", self.cost_power, low=0.0, high=1.0)

    def _choose(self, problem: Problem) -> Choice:
        inclusion_N = inclusion_probabilities(self._sized(problem), problem.budget, self.floor)
        rows = self._draw(problem, inclusion_N)
        weights = sample_weights(problem.features, inclusion_N, rows, self.calibrate, self.max_weight)
        return Choice(rows=rows, weights=weights)

    def _sized(self, problem: Problem) -> Tensor:
        """Rows whose norms are what inclusion is in proportion to: the features, or [N, 1]."""
        sizes_N = problem.sizes
        if problem.costs is None:
            return problem.features if sizes_N is None else sizes_N[:, None]
        if sizes_N is None:
            sizes_N = torch.linalg.vector_norm(problem.features, dim=1).cpu()
        power = DEFAULT_COST_POWER if self.cost_power is None else self.cost_power
        return (sizes_N / problem.costs**power)[:, None]

    @abstractmethod
    def _draw(self, problem: Problem, inclusion_N: Tensor) -> Tensor:
        """Draw a sample: LongTensor [M] of rows, on the CPU.

        Args:
            problem: what is drawn from.
            inclusion_N: float64 [N], pi, which sums to M.
        """
