"""Calibrated sampling: a balanced sample whose weights are then moved towards meeting the mean.

Shape suffixes: N rows of the large batch, M rows of the small batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from corebatch.selectors._checks import check_number
from corebatch.selectors._distances import gram
from corebatch.selectors._inclusion import (
    DEFAULT_FLOOR,
    check_floor,
    expansion_weights,
    inclusion_probabilities,
    systematic_sample,
)
from corebatch.selectors.balanced import balance, expand
from corebatch.selectors.base import Choice, Selector

# The mean weight and the length along the mean are met this much harder than any other direction. Ridge alone
# shrinks the length, by a third at 16 of 128.
_KEEP = 1000.0


@dataclass(frozen=True, kw_only=True)
class Calibrated(Selector):
    """The rows of `balanced`, with weights a_i M / (N pi_i) whose factors a_i are found by ridge regression.

    Minimises ||sum_S a_i f_i / (N pi_i) - mean f||^2 + lambda sum_S (a_i - 1)^2: calibration of survey sampling
    (Deville, Saerndal 1992; with ridge, Chambers 1996). Two totals are kept nearly exactly: the mean weight, 1,
    and the length along the large batch's mean. Weights are bounded to [0, max_weight]: those that leave it
    are set to the bound and the others are solved for again. Nearer to the mean than `balanced` in one step,
    and more biased, the more so the smaller the budget.

    Args:
        ridge: lambda, as a share of the mean squared norm of the chosen f_i / (N pi_i); above 0.
        max_weight: the largest weight, at least 1. 11 is what `floor` 0.1 allows without calibration.
        floor: as in `importance`.

    Raises:
        ConfigError: an option is out of range.
    """

    ridge: float = 0.03
    max_weight: float = 11.0
    floor: float = DEFAULT_FLOOR

    name: ClassVar[str] = "calibrated"
    requires: ClassVar[frozenset[str]] = frozenset({"features"})
    weighted = True

    def __post_init__(self) -> None:
        check_number("ridge", self.ridge, low=1e-6)
        check_number("max_weight", self.max_weight, low=1.0)
        check_floor(self.floor)

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
        start = systematic_sample(inclusion_N, budget, generator)
        expanded_NN, constant = expand(gram(features), inclusion_N)
        rows = balance(expanded_NN, inclusion_N, start, budget)
        weights = expansion_weights(inclusion_N, rows)
        normal_MM, slope_M = _normal_equations(expanded_NN, constant, inclusion_N, rows)
        normal_MM.diagonal().add_(self.ridge * float(expanded_NN.diagonal()[rows].mean()))
        change = _bounded_solution(normal_MM, slope_M, -torch.ones_like(weights), self.max_weight / weights - 1)
        return Choice(rows=rows, weights=(weights * (1.0 + change)).clamp(0.0, self.max_weight))


def _normal_equations(
    expanded_NN: Tensor, constant: float, inclusion_N: Tensor, rows_M: Tensor
) -> tuple[Tensor, Tensor]:
    """The least-squares problem for the changes a - 1, without ridge: matrix [M, M] and right side [M]."""
    target_N = expanded_NN @ inclusion_N  # z_i . t, where t = sum_j pi_j z_j is to be met
    normal_MM = expanded_NN[rows_M[:, None], rows_M]
    slope_M = target_N[rows_M] - normal_MM.sum(dim=1)
    count_M = constant / inclusion_N[rows_M]
    normal_MM += _KEEP * torch.outer(count_M, count_M)
    slope_M += _KEEP * count_M * (constant * len(inclusion_N) - count_M.sum())
    # Without the constant column: how far each row reaches along the mean of the features.
    along_N = target_N - constant**2 * len(inclusion_N) / inclusion_N
    squared = float(inclusion_N @ along_N)  # the squared length of what is to be met
    if squared > 1e-12 * float(inclusion_N @ target_N):  # else the mean is zero and has no direction
        along_M = along_N[rows_M] / squared**0.5
        normal_MM += _KEEP * torch.outer(along_M, along_M)
        slope_M += _KEEP * along_M * (squared**0.5 - along_M.sum())
    return normal_MM, slope_M


def _bounded_solution(matrix_MM: Tensor, right_M: Tensor, low_M: Tensor, high_M: Tensor) -> Tensor:
    """Solve matrix x = right with x in [low, high], by setting what leaves to its bound and solving again."""
    solution_M = torch.zeros_like(right_M)
    free = torch.arange(len(right_M))
    while len(free):
        bound_M = solution_M.clone()
        bound_M[free] = 0.0
        right = (right_M - matrix_MM @ bound_M)[free]
        found = torch.linalg.solve(matrix_MM[free[:, None], free], right)
        solution_M[free] = found.clamp(low_M[free], high_M[free])
        inside = solution_M[free] == found
        if bool(inside.all()):
            break
        free = free[inside]
    return solution_M
