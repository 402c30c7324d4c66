"""Distances and products between rows.

Shape suffixes: N rows, P columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from corebatch.selectors.kernels import blocks

Metric = Literal["l1", "l2", "cosine"]
METRICS: tuple[str, ...] = get_args(Metric)

NARROW = 64
"""Columns up to which distances are computed in float64."""

_BLOCK = 4096  # columns that are summed in float32 before the next block is added


def gram(features_NP: Tensor) -> Tensor:
    """Inner products between rows: float64 [N, N] on the CPU, for features in float64.

    In float64, since what is computed from them cancels, and since float32 products obey the process's global
    setting for them (TF32 or bfloat16, which keep 3 digits).
    """
    if features_NP.device.type == "cpu":
        rows = features_NP.numpy()
        return torch.from_numpy(rows @ rows.T)  # numpy sees that this is symmetric, and does half of the work
    return (features_NP @ features_NP.T).cpu()


def some(features_NP: Tensor, rows: Tensor) -> Tensor:
    """Those rows, given on the CPU in ascending order; without a copy if they are all."""
    return features_NP if len(rows) == len(features_NP) else features_NP.index_select(0, rows.to(features_NP.device))


def row_products(features_NP: Tensor) -> Callable[[int], Tensor]:
    """A function from a row to its inner products with all rows, float64 [N] on the CPU.

    From the matrix of all of them, or, where there are too many rows for that, computed when asked for.
    """
    if blocks.fits(len(features_NP)):
        gram_NN = gram(features_NP)
        return lambda row: gram_NN[row]
    return lambda row: (features_NP @ features_NP[row]).cpu()


def mean_norm(features_NP: Tensor) -> float:
    """The mean Euclidean norm of the rows, or 1 if all are zero."""
    return float(torch.linalg.vector_norm(features_NP, dim=1).mean()) or 1.0


def squared_norms(features_NP: Tensor) -> Tensor:
    """Squared Euclidean norms of the rows: float64 [N] on the CPU."""
    return torch.linalg.vector_norm(features_NP, dim=1).square_().cpu()


def distances(features_NP: Tensor, metric: Metric) -> Tensor:
    """Distances between rows: [N, N] on the CPU, zero on the diagonal, symmetric.

    "l1" is the sum of absolute differences, "l2" the Euclidean distance, "cosine" one minus the cosine. For
    "cosine" rows of zeros are alike (distance 0 to one another) and at distance 1 from all others.

    "l1" and "l2" are in float32 for rows of more than NARROW columns: they are sums of what does not cancel, each
    pair in the same way, so identical rows have identical distances, and the matrix is what takes time and memory.
    Narrow rows stay in float64, where it costs nothing: rows of one number, such as zeroth order's in one direction,
    have differences that tie exactly, and rounding must not settle them. "cosine" is in float64, since it cancels.
    """
    if metric == "cosine":
        return _cosine_distances(features_NP)
    # `pdist` is ten times faster than `cdist` for p = 1, and its differences do not cancel as those of a
    # product of matrices do for p = 2.
    pairs = _pairs(features_NP, 1.0 if metric == "l1" else 2.0).cpu()
    count = len(features_NP)
    result_NN = torch.zeros(count, count, dtype=pairs.dtype)
    start = 0
    for row in range(count - 1):  # row by row: index lists of all pairs would take more than the matrix
        stop = start + count - 1 - row
        result_NN[row, row + 1 :] = pairs[start:stop]
        result_NN[row + 1 :, row] = pairs[start:stop]
        start = stop
    return result_NN


def _pairs(features_NP: Tensor, p: float) -> Tensor:
    """Distances of all pairs of rows, one after the other: [N (N - 1) / 2]."""
    if features_NP.shape[1] <= NARROW:
        return torch.nn.functional.pdist(features_NP.contiguous(), p=p)
    blocks = [block.float().contiguous() for block in features_NP.split(_BLOCK, dim=1)]
    result = torch.nn.functional.pdist(blocks[0], p=p)
    if len(blocks) == 1:
        return result
    result.pow_(p)
    for block in blocks[1:]:
        result.add_(torch.nn.functional.pdist(block, p=p).pow_(p))
    return result.pow_(1.0 / p)


def _cosine_distances(features_NP: Tensor) -> Tensor:
    norms_N1 = torch.linalg.vector_norm(features_NP, dim=1, keepdim=True)
    units_NP = features_NP / norms_N1.where(norms_N1 > 0, torch.ones_like(norms_N1))
    result_NN = gram(units_NP).neg_().add_(1.0).clamp_(min=0.0)
    zero = torch.nonzero(norms_N1[:, 0].cpu() == 0).flatten()
    result_NN[zero[:, None], zero] = 0.0
    return result_NN.fill_diagonal_(0.0)
