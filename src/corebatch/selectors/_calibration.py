"""Calibration of survey sampling: the weights of a sample are moved towards meeting the large batch's mean.

Minimises ||sum_S a_i f_i / (N pi_i) - mean f||^2 + lambda sum_S (a_i - 1)^2 over factors a_i of the weights
M / (N pi_i) (Deville, Saerndal 1992; with ridge, Chambers 1996). Two totals are kept nearly exactly: the mean
weight, 1, and the length along the large batch's mean. Weights are bounded: those that leave [0, max_weight] are
set to the bound and the others are solved for again.

Shape suffixes: N rows of the large batch, M rows of the small batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from corebatch.selectors._checks import check_number
from corebatch.selectors._inclusion import expansion_weights

DEFAULT_RIDGE = 0.03
LOWEST_RIDGE = 1e-6
DEFAULT_MAX_WEIGHT = 11.0  # what `floor` 0.1 allows without calibration

# The mean weight and the length along the mean are met this much harder than any other direction. Ridge alone
# shrinks the length, by a third at 16 of 128.
_KEEP = 1000.0


def check_calibrate(calibrate: object) -> None:
    """Raise ConfigError unless `calibrate` is True (the default ridge), False, or a ridge."""
    if not isinstance(calibrate, bool):
        check_number("calibrate", calibrate, low=LOWEST_RIDGE)


def expand(gram_NN: Tensor, inclusion_N: Tensor) -> tuple[Tensor, float]:
    """Turn inner products of the rows f_i into those of (f_i, c) / pi_i, in place.

    Returns:
        The matrix, float64 [N, N], and the constant c: the mean norm, or 1 if all rows are zero. In units of
        1 / N the rows (f_i, c) / pi_i are what is summed, and sum_j pi_j z_j is what the sum should meet.
    """
    constant = float(gram_NN.diagonal().sqrt().mean()) or 1.0
    return gram_NN.add_(constant**2).div_(inclusion_N[:, None]).div_(inclusion_N), constant


def calibrated_weights(
    expanded_NN: Tensor,
    constant: float,
    inclusion_N: Tensor,
    rows_M: Tensor,
    calibrate: bool | float = True,
    max_weight: float = DEFAULT_MAX_WEIGHT,
) -> Tensor:
    """Weights of a sample after calibration.

    Args:
        expanded_NN: as `expand` gives it, with its `constant`.
        constant: as above.
        inclusion_N: float64 [N].
        rows_M: LongTensor [M], the sample.
        calibrate: the ridge lambda, as a share of the mean squared norm of the chosen f_i / (N pi_i); True is
            the default.
        max_weight: the largest weight.

    Returns:
        float64 [M], within [0, max_weight]; their mean is nearly 1.
    """
    ridge = DEFAULT_RIDGE if calibrate is True else float(calibrate)
    weights_M = expansion_weights(inclusion_N, rows_M)
    normal_MM, slope_M = _normal_equations(expanded_NN, constant, inclusion_N, rows_M)
    normal_MM.diagonal().add_(ridge * float(expanded_NN.diagonal()[rows_M].mean()))
    change_M = _bounded_solution(normal_MM, slope_M, -torch.ones_like(weights_M), max_weight / weights_M - 1)
    return (weights_M * (1.0 + change_M)).clamp(0.0, max_weight)


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
