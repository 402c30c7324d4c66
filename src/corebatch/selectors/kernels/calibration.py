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

from corebatch.selectors.checks import check_number
from corebatch.selectors.kernels import blocks
from corebatch.selectors.kernels.distances import gram, mean_norm, some
from corebatch.selectors.kernels.inclusion import expansion_weights

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


def sample_weights(
    features_NP: Tensor,
    inclusion_N: Tensor,
    rows_M: Tensor,
    calibrate: bool | float,
    max_weight: float = DEFAULT_MAX_WEIGHT,
) -> Tensor:
    """The weights of a sample, M / (N pi) or what calibration makes of them: float64 [M], in the order of `rows_M`.

    Above 4,096 rows chosen, parts of the sample are calibrated in turn, each to its share of what is missing then.

    Args:
        features_NP: float64.
        inclusion_N: float64 [N].
        rows_M: LongTensor [M], the sample.
        calibrate: the ridge lambda, as a share of the mean squared norm of the chosen f_i / (N pi_i); True is
            the default, False none.
        max_weight: the largest weight of a calibrated sample.

    Returns:
        float64 [M]; calibrated ones are within [0, max_weight], and their mean is nearly 1.
    """
    weights_M = expansion_weights(inclusion_N, rows_M)
    if calibrate is False:
        return weights_M
    ridge = DEFAULT_RIDGE if calibrate is True else float(calibrate)
    terms_MQ, missing_Q, square = _terms(features_NP, inclusion_N, rows_M)
    left = len(rows_M)
    for part in blocks.dealt(terms_MQ):
        terms_KQ = some(terms_MQ, part)
        normal_KK = gram(terms_KQ)
        normal_KK.diagonal().add_(ridge * square)
        wanted_K = (terms_KQ @ missing_Q).cpu() * (len(part) / left)
        room_K = max_weight / weights_M[part] - 1
        change_K = _bounded_solution(normal_KK, wanted_K, -torch.ones_like(room_K), room_K)
        weights_M[part] = (weights_M[part] * (1.0 + change_K)).clamp(0.0, max_weight)
        missing_Q = missing_Q - terms_KQ.T @ change_K.to(terms_KQ.device)
        left -= len(part)
    return weights_M


def _terms(features_NP: Tensor, inclusion_N: Tensor, rows_M: Tensor) -> tuple[Tensor, Tensor, float]:
    """What each chosen row adds to the sums that are to be met, and what the sums are short of, in units of 1 / N.

    The sums are of the features, of a constant (the mean norm) that keeps the mean weight, and of the length along the
    large batch's mean. The last two count `_KEEP` times as much.

    Returns:
        float64 [M, P + 2] and [P + 2]; and the mean square of a row without the extra weight of the two.
    """
    device = features_NP.device
    constant = mean_norm(features_NP)
    sum_P = features_NP.sum(dim=0)
    length, size = float(torch.linalg.vector_norm(sum_P)), constant * len(features_NP)
    # If the mean is zero it has no direction.
    unit_P = sum_P / length if length**2 > 1e-12 * (length**2 + size**2) else torch.zeros_like(sum_P)
    terms_MP = features_NP[rows_M.to(device)] / inclusion_N[rows_M].to(device)[:, None]
    count_M = constant / inclusion_N[rows_M].to(device)
    square = float((torch.linalg.vector_norm(terms_MP, dim=1).square_() + count_M.square()).mean())
    count, along = (1.0 + _KEEP) ** 0.5, _KEEP**0.5
    extra_M2 = torch.stack([count * count_M, along * (terms_MP @ unit_P)], dim=1)
    wanted = torch.cat([sum_P, torch.stack([sum_P.new_tensor(count * size), along * (sum_P @ unit_P)])])
    terms_MQ = torch.cat([terms_MP, extra_M2], dim=1)
    return terms_MQ, wanted - terms_MQ.sum(dim=0), square


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
