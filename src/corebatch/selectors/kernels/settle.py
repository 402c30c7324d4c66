"""Deciding rows without bias: the meetings of the local pivotal method (see `pivotal.py`), and blocks of many rows.

Shape suffixes: N rows of the large batch, U undecided rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corebatch.selectors.base import Problem
from corebatch.selectors.kernels import blocks
from corebatch.selectors.kernels.compile import Kernel

DECIDED = 1e-9
"""A probability this near to 0 or 1 is decided."""


def settle_loop(
    distances_NN: NDArray[np.float64],
    inclusion_N: NDArray[np.float64],
    uniforms_N2: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Decide every row but one at most: the probabilities that they have then, 0 or 1 but for that one.

    Meeting k uses uniforms_N2[k]: the first number picks the row, the second decides. Each meeting decides
    one row at least, so N are enough.
    """
    chance_N = inclusion_N.copy()
    undecided_U = np.zeros(len(chance_N), np.int64)
    left = 0
    for i in range(len(chance_N)):
        if chance_N[i] < 1.0 - DECIDED:
            undecided_U[left] = i
            left += 1
    meeting = 0
    while left > 1:
        i = undecided_U[min(int(uniforms_N2[meeting, 0] * left), left - 1)]
        j = -1
        for k in range(left):
            other = undecided_U[k]
            if other != i and (j < 0 or distances_NN[i, other] < distances_NN[i, j]):
                j = other
        both = chance_N[i] + chance_N[j]
        if both < 1.0:
            # One leaves; the other takes its chance over.
            j_stays = uniforms_N2[meeting, 1] * both < chance_N[j]
            chance_N[i] = 0.0 if j_stays else both
            chance_N[j] = both if j_stays else 0.0
        else:
            # One is taken; the other keeps what is left.
            j_taken = uniforms_N2[meeting, 1] * (2.0 - both) < 1.0 - chance_N[i]
            chance_N[i] = both - 1.0 if j_taken else 1.0
            chance_N[j] = 1.0 if j_taken else both - 1.0
        kept = 0
        for k in range(left):  # in order, so that the smaller index wins among equal distances
            other = undecided_U[k]
            if DECIDED < chance_N[other] < 1.0 - DECIDED:
                undecided_U[kept] = other
                kept += 1
        left = kept
        meeting += 1
    return chance_N


def settle_numpy(
    distances_NN: NDArray[np.float64],
    inclusion_N: NDArray[np.float64],
    uniforms_N2: NDArray[np.float64],
) -> NDArray[np.float64]:
    """`settle_loop` without numba: the search for the neighbour is one vector operation."""
    chance_N = inclusion_N.copy()
    undecided_U = np.flatnonzero(chance_N < 1.0 - DECIDED)
    for first, second in uniforms_N2:
        if len(undecided_U) <= 1:
            break
        place = min(int(first * len(undecided_U)), len(undecided_U) - 1)
        i = undecided_U[place]
        near_U = distances_NN[i, undecided_U]
        near_U[place] = np.inf
        j = undecided_U[near_U.argmin()]
        both = chance_N[i] + chance_N[j]
        if both < 1.0:
            chance_N[i], chance_N[j] = (0.0, both) if second * both < chance_N[j] else (both, 0.0)
        else:
            j_taken = second * (2.0 - both) < 1.0 - chance_N[i]
            chance_N[i], chance_N[j] = (both - 1.0, 1.0) if j_taken else (1.0, both - 1.0)
        chance_U = chance_N[undecided_U]
        undecided_U = undecided_U[(chance_U > DECIDED) & (chance_U < 1.0 - DECIDED)]
    return chance_N


settle = Kernel(settle_loop, settle_numpy)


def decide(problem: Problem, inclusion_N: Tensor, rule: Callable[[Tensor, Tensor], Tensor], most: int) -> Tensor:
    """Decide every row by a rule that leaves one undecided at most, block by block where there are many.

    Blocks hold rows f_i / pi_i that are near each other. What each leaves undecided is then decided together, as one
    more block. A rule keeps the sum of probabilities and changes none in expectation; so the size is exact, and each
    row is taken with exactly its probability, whatever the blocks.

    Args:
        problem: features and a budget.
        inclusion_N: pi, which sums to the budget.
        rule: takes rows, and the probabilities that they have; returns new ones.
        most: rows of a block; twice as many are one block.

    Returns:
        LongTensor [M], ascending.
    """
    features_NP = problem.features
    chance_N = inclusion_N.clone()
    open_N = torch.arange(len(chance_N))
    while len(open_N) > 1:
        parts, most = [open_N], max(2, most)  # of two rows one is decided, of one row none
        if not blocks.fits(len(open_N), most):
            there = open_N.to(features_NP.device)
            expanded = features_NP[there] / inclusion_N.to(there.device)[there, None]
            parts = [open_N[block] for block in blocks.near(expanded, most)]
            del expanded
        for part in parts:
            chance_N[part] = rule(part, chance_N[part])
        open_N = torch.nonzero((chance_N > DECIDED) & (chance_N < 1.0 - DECIDED)).flatten()
    taken_N = chance_N > 0.5
    if len(open_N) == 1:
        # The probabilities sum to the budget, so the last is 0 or 1 but for rounding.
        taken_N[open_N] = False
        taken_N[open_N] = taken_N.sum() < problem.budget
    return torch.nonzero(taken_N).flatten()
