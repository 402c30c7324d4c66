"""Orthogonal matching pursuit: rows and weights, none negative, whose sum meets the large batch's.

Shape suffixes: N rows of the large batch, M rows of the small batch, K rows that have a weight so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corebatch.selectors.base import Choice, Problem, Selector
from corebatch.selectors.checks import check_choice, check_number
from corebatch.selectors.kernels import blocks
from corebatch.selectors.kernels.distances import row_products, some, squared_norms

_TOLERANCE = 1e-10  # of the largest correlation: nearer than this counts as equal, and smaller as none

_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class GradientMatching(Selector):
    """Add the row that the residual asks for most, solve for all weights again, and go on to M rows.

    Killamsetty et al., "GRAD-MATCH", ICML 2021, arXiv 2103.00123, algorithm 2: minimises
    ||sum_S w_i f_i - sum_N f_i||^2 + lambda ||w||^2 over w >= 0. A row whose weight would turn negative leaves
    again, so this is the active-set method of Lawson, Hanson 1974, stopped at M rows. The authors' code (cords) drops
    the row of most negative weight and solves again, or solves by non-negative least squares; it stops when a row is
    asked for a second time, and fills up with random rows of weight 1. Here a row may come back, and where fewer rows
    meet the sum as well as any can, the others that it speaks against least are taken with weight 0.

    By default the estimate is the one that was solved for: with weights M / N times the solution, (1/M) sum w_i f_i is
    1/N of the sum that meets the large batch's. It is a bit short, by the ridge and by what M rows cannot meet, and the
    weights average less than 1: few rows that point along the sum make it up. Scaled to average 1, as the authors'
    training loop divides by the weights' sum, the estimate is too long by as much, several times where M is small.
    Biased, as the same rows win each time.

    More than 512 of more than 4,096 rows are taken from blocks, each a cross-section of all rows that meets its own
    sum.

    Args:
        ridge: lambda, as a share of the mean squared norm of the rows, at least 0.0001. 0.5 is the value of the
            paper, which takes it in units of the features.
        scale: "sum": weights as solved, M / N times the solution; "average": scaled to average 1. If no row has a
            weight, all have 1.

    Raises:
        ConfigError: an option is out of range.
    """

    ridge: float = 0.5
    scale: Literal["sum", "average"] = "sum"

    name: ClassVar[str] = "gradient_matching"
    requires: ClassVar[frozenset[str]] = frozenset({"features"})
    weighted = True

    def __post_init__(self) -> None:
        check_number("ridge", self.ridge, low=1e-4)
        check_choice("scale", self.scale, ("sum", "average"))

    def _choose(self, problem: Problem) -> Choice:
        features, budget = problem.features, problem.budget
        ridge = self.ridge * float(squared_norms(features).mean())
        found, solved = [], []
        for inside, count in blocks.for_greedy(features, budget):
            part = some(features, inside)
            rows, weights = pursue(row_products(part), (part @ part.sum(dim=0)).cpu().numpy(), count, ridge)
            found.append(inside[torch.from_numpy(rows)])
            solved.append(torch.from_numpy(weights))
        weights_M = torch.cat(solved)
        total = float(weights_M.sum())
        if total == 0.0:
            return Choice(rows=torch.cat(found))
        divided_by = total if self.scale == "average" else len(features)
        return Choice(rows=torch.cat(found), weights=weights_M * (budget / divided_by))


def pursue(
    row_products: Callable[[int], Tensor], target_N: _Floats, budget: int, ridge: float
) -> tuple[NDArray[np.int64], _Floats]:
    """Matching pursuit with weights that are not negative, given inner products.

    The weights go to the solution for all rows taken, or towards it until one is zero; that row leaves, and may come
    back. The inverse of their matrix is kept and changed by one row at a time: a step takes O(K N) and not O(K^3).

    Args:
        row_products: from a row to its inner products with all rows.
        target_N: inner products of each row with the sum that is to be met.
        budget: M.
        ridge: lambda.

    Returns:
        Rows int64 [M] in the order taken, and their weights, float64 [M].
    """
    count = len(target_N)
    tolerance = _TOLERANCE * float(np.abs(target_N).max(initial=0.0))
    rows = np.zeros(budget, np.int64)
    weights = np.zeros(budget)
    products = np.zeros((budget, count))  # of the rows taken, in one piece of memory
    inverse = np.zeros((budget, budget))
    free_N = np.ones(count, dtype=bool)
    used = 0

    def asked_for() -> _Floats:
        """How much the residual asks for each free row."""
        asked_N = target_N - weights[:used] @ products[:used]
        return np.where(free_N, asked_N, -np.inf)

    for _ in range(4 * budget):  # rows that leave may come back; this many steps were never needed
        if used == budget:
            break
        asked_N = asked_for()
        best = asked_N.max()
        if best <= tolerance:
            break
        row = int((asked_N >= best - tolerance).argmax())
        across_K = products[:used, row]
        along_K = inverse[:used, :used] @ across_K
        products[used] = row_products(row).numpy()
        left = products[used, row] + ridge - across_K @ along_K
        inverse[:used, :used] += np.outer(along_K, along_K) / left
        inverse[used, :used] = inverse[:used, used] = -along_K / left
        inverse[used, used] = 1.0 / left
        rows[used], weights[used] = row, 0.0
        free_N[row] = False
        used += 1
        while True:
            wanted_K = inverse[:used, :used] @ target_N[rows[:used]]
            negative = np.flatnonzero(wanted_K <= 0.0)
            if len(negative) == 0:
                weights[:used] = wanted_K
                break
            # Go towards the solution until the first weight is zero, and take that row out.
            steps = weights[negative] / (weights[negative] - wanted_K[negative])
            weights[:used] += steps.min() * (wanted_K - weights[:used])
            out, last = int(negative[steps.argmin()]), used - 1
            free_N[rows[out]] = True
            gone_K = inverse[:used, out].copy()
            inverse[:used, :used] -= np.outer(gone_K, gone_K) / gone_K[out]
            for each in (rows, weights, products, inverse):
                each[out] = each[last]
            inverse[:used, out] = inverse[:used, last]
            used -= 1
    weights[used:] = 0.0
    order = np.argsort(-asked_for(), kind="stable")
    rows[used:] = order[: budget - used]
    return rows, weights
