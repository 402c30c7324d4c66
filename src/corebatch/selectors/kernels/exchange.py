"""Exchanges of medoids (see `k_medoids.py`).

Shape suffixes: N rows of the large batch, M medoids.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from corebatch.selectors.kernels.compile import Kernel

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


def exchange_loop(distances_NN: NDArray[np.floating], start_M: _Ints, max_swaps: int, relative: float) -> _Ints:
    """Replace one medoid by another row while that lowers sum_i min_m d(i, m), the best exchange each time.

    FastPAM1 (Schubert, Rousseeuw 2019, arXiv 1810.05691): with each row's nearest and second nearest medoid
    known, all exchanges are compared in O(N^2) together.

    Args:
        distances_NN: entry [j, i] is what row i costs if it is represented by row j; not negative, float32 or
            float64; sums are in float64.
        start_M: the medoids to start from. Not modified.
        max_swaps: stop after so many.
        relative: stop when no exchange lowers the sum by more than this share of the largest distance times N.

    Returns:
        int64 [M]. Among equal exchanges the first row and the first medoid win.
    """
    count, budget = len(distances_NN), len(start_M)
    medoids_M = start_M.copy()
    # With one medoid there is no second; then any bound of the distances will do, and cancels.
    largest = distances_NN.max()
    tolerance = relative * largest * count
    for _ in range(max_swaps):
        chosen_N = np.zeros(count, np.bool_)
        nearest_N = np.zeros(count, np.int64)
        first_N = np.full(count, np.inf)
        second_N = np.full(count, largest, np.float64)
        loss_M = np.zeros(budget)  # what leaving a medoid out costs
        for m in range(budget):
            chosen_N[medoids_M[m]] = True
        for i in range(count):
            for m in range(budget):
                apart = distances_NN[medoids_M[m], i]
                if apart < first_N[i]:
                    if m > 0:
                        second_N[i] = first_N[i]
                    first_N[i] = apart
                    nearest_N[i] = m
                elif apart < second_N[i]:
                    second_N[i] = apart
            loss_M[nearest_N[i]] += second_N[i] - first_N[i]
        best, enterer, leaver = -tolerance, -1, -1
        for j in range(count):
            if chosen_N[j]:
                continue
            gain = 0.0
            change_M = loss_M.copy()
            for i in range(count):
                apart = distances_NN[j, i]
                if apart < first_N[i]:
                    gain += apart - first_N[i]
                    change_M[nearest_N[i]] += first_N[i] - second_N[i]
                elif apart < second_N[i]:
                    change_M[nearest_N[i]] += apart - second_N[i]
            m = int(change_M.argmin())
            # An exchange must win by the tolerance, so that noise does not choose among equals.
            if gain + change_M[m] < best - (tolerance if enterer >= 0 else 0.0):
                best, enterer, leaver = gain + change_M[m], j, m
        if enterer < 0:
            break
        medoids_M[leaver] = enterer
    return medoids_M


def exchange_numpy(distances_NN: NDArray[np.floating], start_M: _Ints, max_swaps: int, relative: float) -> _Ints:
    """`exchange_loop` without numba: each entering row is one vector operation."""
    count, budget = len(distances_NN), len(start_M)
    medoids_M = start_M.copy()
    largest = distances_NN.max()
    tolerance = relative * largest * count
    for _ in range(max_swaps):
        apart_NM = distances_NN[medoids_M].T.astype(np.float64)
        nearest_N = apart_NM.argmin(axis=1)
        first_N = apart_NM.min(axis=1)
        second_N = np.partition(apart_NM, 1, axis=1)[:, 1] if budget > 1 else np.full(count, largest, np.float64)
        loss_M = np.bincount(nearest_N, second_N - first_N, minlength=budget)
        best, enterer, leaver = -tolerance, -1, -1
        for j in np.setdiff1d(np.arange(count), medoids_M):
            row_N = distances_NN[j].astype(np.float64)
            gain = np.minimum(row_N - first_N, 0.0).sum()
            saved_N = np.clip(row_N, first_N, second_N) - second_N
            change_M = loss_M + np.bincount(nearest_N, saved_N, minlength=budget)
            m = int(change_M.argmin())
            if gain + change_M[m] < best - (tolerance if enterer >= 0 else 0.0):
                best, enterer, leaver = gain + change_M[m], int(j), m
        if enterer < 0:
            break
        medoids_M[leaver] = enterer
    return medoids_M


exchange = Kernel(exchange_loop, exchange_numpy)
