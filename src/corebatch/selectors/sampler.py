"""What samplers share: probabilities in proportion to norms, rows drawn with them, weights M / (N pi).

Shape suffixes: N rows of the large batch, M rows of the small batch.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from corebatch.selectors.base import Choice, Problem, Selector
from corebatch.selectors.kernels.calibration import DEFAULT_MAX_WEIGHT, check_calibrate, sample_weights
from corebatch.selectors.kernels.inclusion import DEFAULT_FLOOR, check_floor, inclusion_probabilities


class Sampler(Selector):
    """A selector that draws rows with inclusion probabilities. Subclasses give `_draw`, and options as fields.

    Attributes:
        floor: as in `importance`.
        max_weight: the largest weight of a calibrated sample.
    """

    floor: float = DEFAULT_FLOOR
    max_weight: float = DEFAULT_MAX_WEIGHT

    requires: ClassVar[frozenset[str]] = frozenset({"features"})
    weighted = True

    @property
    def calibrate(self) -> bool | float:
        """Whether weights are moved towards meeting the mean: a ridge, or True for the default one."""
        return False

    def __post_init__(self) -> None:
        check_floor(self.floor)
        check_calibrate(self.calibrate)

    def _choose(self, problem: Problem) -> Choice:
        inclusion_N = inclusion_probabilities(problem.features, problem.budget, self.floor)
        rows = self._draw(problem, inclusion_N)
        weights = sample_weights(problem.features, inclusion_N, rows, self.calibrate, self.max_weight)
        return Choice(rows=rows, weights=weights)

    @abstractmethod
    def _draw(self, problem: Problem, inclusion_N: Tensor) -> Tensor:
        """Draw a sample: LongTensor [M] of rows, on the CPU.

        Args:
            problem: what is drawn from.
            inclusion_N: float64 [N], pi, which sums to M.
        """
