"""The flight and the landing of the cube method (see `cube.py`).

Shape suffixes: N rows of the large batch, Q balancing variables, U undecided rows that a step looks at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from corebatch.selectors.kernels.compile import Kernel

_DECIDED = 1e-9  # a probability this near to 0 or 1 is decided
_RANK = 1e-9  # a pivot below this is zero; entries are of order 1

_Floats = NDArray[np.float64]


def null_vector_loop(matrix_QU: _Floats) -> _Floats:
    """A vector that is not zero with matrix @ vector = 0, for a matrix with more columns than rows: float64 [U].

    Gauss and Jordan with row pivoting, up to the first column that depends on those before it. It gets a 1.
    """
    height, width = matrix_QU.shape
    matrix_QU = matrix_QU.copy()
    free = height
    for k in range(height):
        pivot = k
        for q in range(k + 1, height):
            if abs(matrix_QU[q, k]) > abs(matrix_QU[pivot, k]):
                pivot = q
        if abs(matrix_QU[pivot, k]) <= _RANK:
            free = k
            break
        for c in range(k, width):
            upper = matrix_QU[k, c]
            matrix_QU[k, c] = matrix_QU[pivot, c]
            matrix_QU[pivot, c] = upper
        scale = matrix_QU[k, k]
        for c in range(k, width):
            matrix_QU[k, c] /= scale
        for q in range(height):
            factor = matrix_QU[q, k]
            if q != k and factor != 0.0:
                for c in range(k, width):
                    matrix_QU[q, c] -= factor * matrix_QU[k, c]
    result_U = np.zeros(width)
    result_U[free] = 1.0
    for k in range(free):
        result_U[k] = -matrix_QU[k, free]
    return result_U


def null_vector_numpy(matrix_QU: _Floats) -> _Floats:
    """`null_vector_loop` without numba: each column is one outer product."""
    height, width = matrix_QU.shape
    matrix_QU = matrix_QU.copy()
    free = height
    for k in range(height):
        pivot = k + int(np.abs(matrix_QU[k:, k]).argmax())
        if abs(matrix_QU[pivot, k]) <= _RANK:
            free = k
            break
        matrix_QU[[k, pivot], k:] = matrix_QU[[pivot, k], k:]
        matrix_QU[k, k:] /= matrix_QU[k, k]
        factor_Q = matrix_QU[:, k].copy()
        factor_Q[k] = 0.0
        matrix_QU[:, k:] -= np.outer(factor_Q, matrix_QU[k, k:])
    result_U = np.zeros(width)
    result_U[free] = 1.0
    result_U[:free] = -matrix_QU[:free, free]
    return result_U


null_vector = Kernel(null_vector_loop, null_vector_numpy)


def fly(variables_NQ: _Floats, inclusion_N: _Floats, uniforms_N: _Floats, budget: int) -> NDArray[np.bool_]:
    """Decide every row; True for the `budget` rows that are taken.

    Each step looks at the first undecided rows, one more than there are variables, and changes their
    probabilities in a direction that keeps every total, or in the opposite one, until one of them is 0 or 1
    (Chauvet, Tille 2006). Which way is drawn so that the expected change is zero. When fewer rows are left, the
    last variables are dropped, and the first is kept to the end.

    Args:
        variables_NQ: row i is what it adds to the totals when it is taken, entries of order 1. The first column
            is constant, so that the number of rows is kept.
        inclusion_N: probabilities that sum to `budget`.
        uniforms_N: one for each step. Each step decides one row at least, so N are enough.
        budget: M.
    """
    chance_N = inclusion_N.copy()
    waiting = np.flatnonzero(chance_N < 1.0 - _DECIDED)
    looked_at, waiting = np.split(waiting, [variables_NQ.shape[1] + 1])
    for uniform in uniforms_N:
        if len(looked_at) < 2:
            break
        change_U = null_vector(np.ascontiguousarray(variables_NQ[looked_at, : len(looked_at) - 1].T))
        chance_U = chance_N[looked_at]
        moving = change_U != 0.0
        per_U = change_U[moving]
        to_one_U, to_zero_U = (1.0 - chance_U[moving]) / per_U, -chance_U[moving] / per_U
        up = np.maximum(to_one_U, to_zero_U).min()
        down = -np.minimum(to_one_U, to_zero_U).max()
        length = up if uniform * (up + down) < down else -down
        chance_N[looked_at] = chance_U + length * change_U
        chance_U = chance_N[looked_at]
        settled_U = (chance_U <= _DECIDED) | (chance_U >= 1.0 - _DECIDED)
        enter, waiting = np.split(waiting, [int(settled_U.sum())])
        looked_at = np.concatenate([looked_at[~settled_U], enter])
    taken_N = chance_N > 0.5
    if len(looked_at) == 1:
        # The probabilities sum to the budget, so the last is 0 or 1 but for rounding.
        taken_N[looked_at] = False
        taken_N[looked_at] = taken_N.sum() < budget
    return taken_N
