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

import math

import numpy as np
import torch
from numpy.typing import NDArray

from corebatch.selectors.kernels.compile import Kernel
from corebatch.selectors.kernels.inclusion import random_order

TOLERANCE = 1e-12

_Floats = NDArray[np.floating]
_Ints = NDArray[np.int64]


def greedy_loop(similarities_CN: _Floats, group_C: _Ints, budget_G: _Ints, relative: float) -> tuple[_Ints, _Floats]:
    """Choose rows of the matrix that maximise sum_i max(0, max_chosen s[chosen, i]), so many of each group.

    Args:
        similarities_CN: row j says how well candidate j represents each row.
        group_C: the group of each candidate.
        budget_G: how many are chosen of each group, at most as many as it has. Not modified.
        relative: gains within this share of the largest first gain count as equal.

    Returns:
        Candidates in the order chosen, int64 [M], and their gains, float64 [M].
    """
    candidates, count = similarities_CN.shape
    budget = budget_G.sum()
    left_G = budget_G.copy()
    covered_N = np.zeros(count)
    bound_C = np.zeros(candidates)
    for j in range(candidates):
        total = 0.0
        for i in range(count):
            total += max(similarities_CN[j, i] - covered_N[i], 0.0)
        bound_C[j] = total
    tolerance = relative * bound_C.max()
    # The step at which a bound was computed; `budget` marks candidates that are chosen already, or whose group
    # is full.
    fresh_C = np.zeros(candidates, np.int64)
    for j in range(candidates):
        if left_G[group_C[j]] == 0:
            fresh_C[j] = budget
    chosen_M = np.zeros(budget, np.int64)
    gains_M = np.zeros(budget)
    # Bounds of the first step are gains already.
    best = -np.inf
    for j in range(candidates):
        if fresh_C[j] == 0:
            best = max(best, bound_C[j])
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
                if fresh_C[j] < budget and left_G[group_C[j]] > 0:
                    chosen_M[filled] = j
                    left_G[group_C[j]] -= 1
                    filled += 1
            break
        pick = 0
        while fresh_C[pick] != step or bound_C[pick] < best - tolerance:
            pick += 1
        chosen_M[step] = pick
        gains_M[step] = bound_C[pick]
        fresh_C[pick] = budget
        left_G[group_C[pick]] -= 1
        if left_G[group_C[pick]] == 0:
            for j in range(candidates):
                if group_C[j] == group_C[pick]:
                    fresh_C[j] = budget
        for i in range(count):
            covered_N[i] = max(covered_N[i], similarities_CN[pick, i])
        best = -np.inf
    return chosen_M, gains_M


def greedy_numpy(similarities_CN: _Floats, group_C: _Ints, budget_G: _Ints, relative: float) -> tuple[_Ints, _Floats]:
    """`greedy_loop` without numba: the same rule, each candidate's gain as one vector operation."""
    candidates, count = similarities_CN.shape
    budget = int(budget_G.sum())
    left_G = budget_G.copy()
    covered_N = np.zeros(count)
    work_N = np.zeros(count)

    def gain(candidate: int) -> float:
        np.subtract(similarities_CN[candidate], covered_N, out=work_N)
        np.maximum(work_N, 0.0, out=work_N)
        return float(work_N.sum())

    bound_C = np.array([gain(candidate) for candidate in range(candidates)])
    tolerance = relative * bound_C.max()
    free_C = left_G[group_C] > 0
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
            rest = np.flatnonzero(free_C)
            kept = [rest[group_C[rest] == group][:left] for group, left in enumerate(left_G)]
            chosen_M[step:] = np.sort(np.concatenate(kept))
            break
        pick = int((gain_C >= best - tolerance).argmax())
        chosen_M[step] = pick
        gains_M[step] = gain_C[pick]
        free_C[pick] = False
        left_G[group_C[pick]] -= 1
        if left_G[group_C[pick]] == 0:
            free_C[group_C == group_C[pick]] = False
        np.maximum(covered_N, similarities_CN[pick], out=covered_N)
    return chosen_M, gains_M


# Vectorised sums are added in another order, and in the same one each time, which is what the argument above needs.
greedy = Kernel(greedy_loop, greedy_numpy, fastmath=("reassoc", "nsz", "nnan"))


def symmetric_loop(matrix_NN: _Floats) -> bool:
    """Whether the matrix is its own transpose: tile by tile, since reading columns of all of it would take longer
    than the greedy."""
    count, tile = len(matrix_NN), 32
    for top in range(0, count, tile):
        for side in range(top, count, tile):
            for i in range(top, min(top + tile, count)):
                for j in range(side, min(side + tile, count)):
                    if matrix_NN[i, j] != matrix_NN[j, i]:
                        return False
    return True


def symmetric_numpy(matrix_NN: _Floats) -> bool:
    """`symmetric_loop` without numba."""
    count, tile = len(matrix_NN), 128
    return all(
        np.array_equal(matrix_NN[top : top + tile, top:], matrix_NN[top:, top : top + tile].T)
        for top in range(0, count, tile)
    )


symmetric = Kernel(symmetric_loop, symmetric_numpy)


def greedy_of_all(similarities_CN: _Floats, budget: int) -> tuple[_Ints, _Floats]:
    """`greedy` without groups."""
    group_C = np.zeros(len(similarities_CN), np.int64)
    return greedy(similarities_CN, group_C, np.array([budget]), TOLERANCE)


def stochastic_greedy(
    similarities_CN: _Floats, budget: int, epsilon: float, generator: torch.Generator
) -> tuple[_Ints, _Floats]:
    """In each step the best of C / M ln(1 / epsilon) random candidates; ties go to the smaller index.

    Mirzasoleiman et al., "Lazier than lazy greedy", AAAI 2015, arXiv 1409.7938, algorithm 1: at least
    1 - 1/e - epsilon of the optimum in expectation, from C ln(1 / epsilon) gains in all.

    Returns:
        As `greedy`.
    """
    candidates, count = similarities_CN.shape
    looked_at = max(1, math.ceil(candidates / budget * math.log(1.0 / epsilon)))
    covered_N = np.zeros(count)
    free = np.arange(candidates)
    chosen_M = np.zeros(budget, np.int64)
    gains_M = np.zeros(budget)
    largest = 0.0
    for step in range(budget):
        places = random_order(generator, len(free))[:looked_at].sort().values.numpy()
        gain_C = np.array([np.maximum(similarities_CN[j] - covered_N, 0.0).sum() for j in free[places]])
        largest = max(largest, gain_C.max())
        place = places[(gain_C >= gain_C.max() - TOLERANCE * largest).argmax()]
        chosen_M[step], gains_M[step] = free[place], gain_C.max()
        covered_N = np.maximum(covered_N, similarities_CN[free[place]])
        free = np.delete(free, place)
    return chosen_M, gains_M
