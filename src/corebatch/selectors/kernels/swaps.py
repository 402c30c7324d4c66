"""Steepest swaps between chosen and unchosen rows (see `balanced.py`).

Shape suffixes: N rows of the large batch, I chosen rows that may leave, O rows that may enter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from corebatch.selectors.kernels.compile import Kernel

_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]


def swap_loop(
    gram_NN: _Floats,
    slope_N: _Floats,
    chosen_N: _Bools,
    fixed_N: _Bools,
    max_swaps: int,
    tolerance: float,
) -> _Bools:
    """Swap while a swap lowers ||sum_chosen z_i - t||^2 by more than the tolerance, the best one each time.

    Args:
        gram_NN: inner products z_i . z_j.
        slope_N: z_i . (sum_chosen z - t), for the rows chosen at the start.
        chosen_N: the rows chosen at the start. Not modified, nor is `slope_N`.
        fixed_N: rows that stay where they are.
        max_swaps: stop after so many.
        tolerance: stop when no swap lowers the squared error by more.

    Returns:
        The rows chosen at the end, as many as at the start. Among equal swaps the first wins.
    """
    count = len(slope_N)
    chosen = chosen_N.copy()
    slope = slope_N.copy()
    for _ in range(max_swaps):
        best = -tolerance
        leaver, enterer = -1, -1
        for i in range(count):
            if not chosen[i] or fixed_N[i]:
                continue
            leave = gram_NN[i, i] - 2.0 * slope[i]
            for j in range(count):
                if chosen[j] or fixed_N[j]:
                    continue
                change = (leave + (gram_NN[j, j] + 2.0 * slope[j])) - 2.0 * gram_NN[i, j]
                if change < best:
                    best, leaver, enterer = change, i, j
        if leaver < 0:
            break
        chosen[leaver] = False
        chosen[enterer] = True
        for k in range(count):
            slope[k] += gram_NN[enterer, k] - gram_NN[leaver, k]
    return chosen


def swap_numpy(
    gram_NN: _Floats,
    slope_N: _Floats,
    chosen_N: _Bools,
    fixed_N: _Bools,
    max_swaps: int,
    tolerance: float,
) -> _Bools:
    """`swap_loop` without numba: all swaps of a step are compared in one matrix."""
    chosen = chosen_N.copy()
    slope = slope_N.copy()
    squares_N = gram_NN.diagonal()
    for _ in range(max_swaps):
        inside_I = np.flatnonzero(chosen & ~fixed_N)
        outside_O = np.flatnonzero(~chosen & ~fixed_N)
        if len(inside_I) == 0 or len(outside_O) == 0:
            break
        leave_I = squares_N[inside_I] - 2.0 * slope[inside_I]
        enter_O = squares_N[outside_O] + 2.0 * slope[outside_O]
        change_IO = (leave_I[:, None] + enter_O) - 2.0 * gram_NN[np.ix_(inside_I, outside_O)]
        row, column = divmod(int(change_IO.argmin()), len(outside_O))
        if not change_IO[row, column] < -tolerance:
            break
        leaver, enterer = inside_I[row], outside_O[column]
        chosen[leaver] = False
        chosen[enterer] = True
        slope += gram_NN[enterer] - gram_NN[leaver]
    return chosen


swap = Kernel(swap_loop, swap_numpy)
