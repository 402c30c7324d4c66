"""The Gram-Schmidt walk: an unbiased sample of exact size that is balanced in every direction at once.

Shape suffixes: N rows of the large batch, M rows of the small batch, U undecided rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corebatch.selectors.base import Problem
from corebatch.selectors.checks import check_number
from corebatch.selectors.kernels import blocks
from corebatch.selectors.kernels.distances import gram, some
from corebatch.selectors.kernels.inclusion import DEFAULT_FLOOR, random_order, uniforms
from corebatch.selectors.kernels.settle import DECIDED, decide
from corebatch.selectors.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class GramSchmidtWalk(Sampler):
    """Settle one row at a time, and let all undecided rows make up for it as well as they can.

    Harshaw, Saevje, Spielman, Zhang, "Balancing covariates in randomized experiments with the Gram-Schmidt walk
    design", JASA 2024, arXiv 1911.03071. The vector of inclusion probabilities walks to a corner of the cube
    [0, 1]^N, with expected change zero, so each row is taken with exactly its probability. A pivot row moves by
    one, and the others so that ||sum_i change_i f_i / pi_i||^2 + lambda ||change||^2 is least. Here the changes
    also sum to zero, so that exactly M rows come out, as in the authors' code with `balanced=true` (GSWDesign.jl).

    The cube method balances a few directions exactly; this one balances all of them, by their size. Above 2,048 rows
    only rows of one block of near rows make up for each other, and then what the blocks leave undecided: as unbiased,
    of the same size, a little less balanced.

    Args:
        floor: as in `importance`.
        robustness: lambda, as a share of the mean squared norm of the rows f_i / pi_i, above 0: how much the
            sample is to be like independent draws, which is what protects directions outside the features.
        calibrate, cost_power: as in `importance`.

    Raises:
        ConfigError: an option is out of range.
    """

    floor: float = DEFAULT_FLOOR
    robustness: float = 0.03
    calibrate: bool | float = False
    cost_power: float | None = None

    name: ClassVar[str] = "gram_schmidt_walk"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("robustness", self.robustness, low=1e-4)

    def _draw(self, problem: Problem, inclusion_N: Tensor) -> Tensor:
        features, generator = problem.features, problem.generator

        def step(rows: Tensor, chance: Tensor) -> Tensor:
            order = random_order(generator, len(rows))
            order = order[chance[order] < 1.0 - DECIDED]
            there = rows[order]
            inner = inclusion_N[there]
            matrix_UU = gram(some(features, rows))[order[:, None], order].div_(inner[:, None]).div_(inner)
            # If all rows are zero, any constant does.
            matrix_UU.diagonal().add_(self.robustness * float(matrix_UU.diagonal().mean()) or 1.0)
            chance[order] = walk(matrix_UU, chance[order], uniforms(generator, len(order)))
            return chance

        return decide(problem, inclusion_N, step, blocks.BLOCK // 2)


def walk(matrix_UU: Tensor, chance_U: Tensor, uniforms_U: Tensor) -> Tensor:
    """Decide every row but one at most: the probabilities that they have then, 0 or 1 but for that one.

    The first undecided row is the pivot, until it is decided itself. The inverse of the matrix of the undecided
    rows is kept, and loses one row at a time, so the whole is O(U^3).

    Args:
        matrix_UU: positive definite, float64; a change x of the probabilities costs x . matrix @ x.
        chance_U: probabilities in (0, 1). Not modified.
        uniforms_U: one for each step. Each step decides one row at least, so U are enough.
    """
    # Small steps go faster in numpy; the rank-one change, which is all of the work in large ones, in torch, in place.
    chance = chance_U.numpy().copy()
    shared = torch.linalg.inv(matrix_UU)
    inverse = shared.numpy()
    sums = inverse.sum(axis=1)
    rows = np.arange(len(chance))  # the undecided rows; place k of `inverse` and `sums` is that of rows[k]
    left = len(chance)
    for uniform in uniforms_U.tolist():
        if left < 2:
            break
        change = cheapest_change(inverse[0, :left], sums[:left])
        here = chance[rows[:left]]
        moving = change != 0.0
        one, zero = (1.0 - here[moving]) / change[moving], -here[moving] / change[moving]
        up, down = np.maximum(one, zero).min(), -np.minimum(one, zero).max()
        here += change * (up if uniform * (up + down) < down else -down)
        chance[rows[:left]] = here
        for place in np.flatnonzero((here <= DECIDED) | (here >= 1.0 - DECIDED))[::-1].tolist():
            gone = inverse[place, :left].copy()
            sums[:left] -= gone * (sums[place] / gone[place])
            gone_tensor = torch.from_numpy(gone)
            shared[:left, :left].addr_(gone_tensor, gone_tensor, alpha=-1.0 / gone[place])
            left -= 1
            # The last place moves into the gap; into the first, if the pivot was settled: then it is the next pivot.
            for each in (rows, sums, inverse):
                each[place] = each[left]
            inverse[:left, place] = inverse[:left, left]
    return torch.from_numpy(chance)


def cheapest_change(first_U: NDArray[np.float64], sums_U: NDArray[np.float64]) -> NDArray[np.float64]:
    """The x with x[0] = 1 and sum x = 0 for which x . matrix @ x is least, by Lagrange's multipliers.

    Args:
        first_U: the first row of the matrix's inverse.
        sums_U: the sums of all its rows.
    """
    change_U = first_U * sums_U.sum() - sums_U * sums_U[0]
    return change_U / change_U[0]
