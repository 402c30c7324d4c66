"""A sample of a data set whose weighted sum of features is the data set's, nearly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from corebatch.selectors.balanced import balance_blocks
from corebatch.selectors.kernels import blocks
from corebatch.selectors.kernels.inclusion import (
    DEFAULT_FLOOR,
    check_floor,
    expansion_weights,
    inclusion_probabilities,
    systematic_sample,
)
from corebatch.subset.base import Subset, SubsetMethod, SubsetProblem
from corebatch.subset.near import BLOCK, norms, reduced


@dataclass(frozen=True, kw_only=True)
class BalancedSubset(SubsetMethod):
    """Draw rows in proportion to the norm of their features, then swap while the sum of weighted features comes nearer
    to the data set's: the selector `balanced` with features that are read in blocks of 1,024 rows, each a cross-section
    of all rows that makes up for the blocks before it.

    Follows the pool with the weights M / (N pi), divided by their mean. Swaps change the probabilities a little, so it
    is biased; over the many rows of a data set far less than in a small pool. By gradients (features `last_layer`) it
    keeps the mean gradient of the model that scored; that one moves on while training, so this is for short runs.

    Args:
        floor: as in the selector `importance`: norms below so many times the mean count as that.
    """

    floor: float = DEFAULT_FLOOR

    name: ClassVar[str] = "balanced"

    def __post_init__(self) -> None:
        check_floor(self.floor)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"features"})

    @property
    def weighted(self) -> bool:
        return True

    def _choose(self, problem: SubsetProblem) -> Subset:
        features, budget = problem.features, problem.budget
        assert features is not None
        norms_N = norms(features)
        inclusion_N = inclusion_probabilities(norms_N[:, None], budget, self.floor)
        start = systematic_sample(inclusion_N, budget, problem.generator)
        open_N = inclusion_N < 1.0
        constant = (float(norms_N[open_N].mean()) if bool(open_N.any()) else 0.0) or 1.0
        parts = blocks.dealt(reduced(features, problem.generator), most=BLOCK)

        def read(rows: Tensor) -> Tensor:
            return features.take(rows).double()

        rows = balance_blocks(read, parts, inclusion_N, start, constant, budget)
        return Subset(rows=rows, weights=expansion_weights(inclusion_N, rows))
