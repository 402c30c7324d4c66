"""Lazy greedy maximisation of facility location, exact, given similarities.

Shape suffixes: C candidates, N rows that are represented (the same rows, in practice), M chosen.

Minoux, "Accelerated greedy algorithms for maximizing submodular set functions", 1978: a gain computed in an
earlier step is an upper bound of today's, so most candidates are not looked at again. This holds in floating
point too: each term max(0, s - covered) falls when `covered` rises, rounding is monotone, and the terms are
always added in the same order. So the lazy choice is the naive one, bit for bit.

Gains within `TOLERANCE` of the largest first gain count as equal, and ties go to the smaller index;
otherwise the noise of computing distances would decide between duplicates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from corebatch.selectors._compile import Kernel

TOLERANCE = 1e-12

_Floats = NDArray[np.floating]
_Ints = NDArray[np.int64]


def greedy_loop(similarities_CN: _Floats, budget: int, relative: float) -> tuple[_Ints, _Floats]:
    """Choose `budget` rows of the matrix that maximise sum_i max(0, max_chosen s[chosen, i]).

    Returns:
        Candidates in the order chosen, int64 [M], and their gains, float64 [M].
    """
    candidates, count = similarities_CN.shape
    covered_N = np.zeros(count)
    bound_C = np.zeros(candidates)
    for j in range(candidates):
        total = 0.0
        for i in range(count):
            total += max(similarities_CN[j, i] - covered_N[i], 0.0)
        bound_C[j] = total
    tolerance = relative * bound_C.max()
    # The step at which a bound was computed; `budget` marks candidates that are chosen already.
    fresh_C = np.zeros(candidates, np.int64)
    chosen_M = np.zeros(budget, np.int64)
    gains_M = np.zeros(budget)
    best = bound_C.max()
    for step in range(budget):
        while True:
            top = -1
            for j in range(candidates):
                if fresh_C[j] < step and (top < 0 or bound_C[j] > bound_C[top]):
                    top = j
            if top < 0 or bound_C[top] < best - tolerance:
                break
            total = 0.0
            for i in range(count):
                total += max(similarities_CN[top, i] - covered_N[i], 0.0)
            bound_C[top] = total
            fresh_C[top] = step
            best = max(best, total)
        if best <= tolerance:
            # Nothing is left to gain: the rest is filled in order, without evaluating every one each time.
            filled = step
            for j in range(candidates):
                if fresh_C[j] < budget and filled < budget:
                    chosen_M[filled] = j
                    filled += 1
            break
        pick = 0
        while fresh_C[pick] != step or bound_C[pick] < best - tolerance:
            pick += 1
        chosen_M[step] = pick
        gains_M[step] = bound_C[pick]
        fresh_C[pick] = budget
        for i in range(count):
            covered_N[i] = max(covered_N[i], similarities_CN[pick, i])
        best = -np.inf
    return chosen_M, gains_M


def greedy_numpy(similarities_CN: _Floats, budget: int, relative: float) -> tuple[_Ints, _Floats]:
    """`greedy_loop` without numba: the same rule, each candidate's gain as one vector operation."""
    candidates, count = similarities_CN.shape
    covered_N = np.zeros(count)
    work_N = np.zeros(count)

    def gain(candidate: int) -> float:
        np.subtract(similarities_CN[candidate], covered_N, out=work_N)
        np.maximum(work_N, 0.0, out=work_N)
        return float(work_N.sum())

    bound_C = np.array([gain(candidate) for candidate in range(candidates)])
    tolerance = relative * bound_C.max()
    free_C = np.ones(candidates, dtype=bool)
    chosen_M = np.zeros(budget, np.int64)
    gains_M = np.zeros(budget)
    for step in range(budget):
        stale_C = np.where(free_C, bound_C, -np.inf)
        gain_C = np.full(candidates, -np.inf)
        best = -np.inf
        while True:
            top = int(stale_C.argmax())
            if stale_C[top] == -np.inf or stale_C[top] < best - tolerance:
                break
            gain_C[top] = bound_C[top] = gain(top)
            stale_C[top] = -np.inf
            best = max(best, gain_C[top])
        if best <= tolerance:
            chosen_M[step:] = np.flatnonzero(free_C)[: budget - step]
            break
        pick = int((gain_C >= best - tolerance).argmax())
        chosen_M[step] = pick
        gains_M[step] = gain_C[pick]
        free_C[pick] = False
        np.maximum(covered_N, similarities_CN[pick], out=covered_N)
    return chosen_M, gains_M


greedy = Kernel(greedy_loop, greedy_numpy)
