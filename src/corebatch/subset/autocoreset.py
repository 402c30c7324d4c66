"""AutoCoreset: few weighted rows whose losses sum to those of all rows, for sampled states of a model.

Shape suffixes: N rows, M kept rows, Q queries (states of the model), D totals that are kept, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corebatch.options import check_count
from corebatch.selectors.checks import check_choice, check_number
from corebatch.selectors.kernels.inclusion import (
    DEFAULT_FLOOR,
    expansion_weights,
    inclusion_probabilities,
    random_order,
    systematic_sample,
)
from corebatch.subset.base import Subset, SubsetMethod, SubsetProblem

_DRAWS = 100

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class AutoCoresetSubset(SubsetMethod):
    """Weighted rows with sum_kept w_i L_i(q) = sum_all L_i(q) for the queries q that matter.

    Maalouf, Tukan, Braverman, Rus, "AutoCoreset: An Automatic Practical Coreset Construction Framework", ICML 2023,
    arXiv 2305.11980, algorithm 1: each row is the vector of its losses by some states of the model, and the sum of
    those vectors is summarised by few weighted rows. Here the states are columns of `losses` (checkpoints, or
    perturbations of one). Some random ones begin; then the one is added whose total the kept rows get wrong most, until
    all are right to `tolerance`, or `patience` rounds brought nothing; the best round counts. (Theirs adds the state
    that is fitted to the coreset, which would be one training run a round, and spreads the budget over classes.)

    `caratheodory` keeps totals exactly, the number of rows too: groups of rows are merged into fewer by vectors that
    change no total (Maalouf, Jubran, Feldman, "Fast and Accurate Least-Mean-Squares Solvers", NeurIPS 2019). Theirs
    stops at M rows or fewer, ours at M: the last groups are cut to fit. `median_of_means` is the best of 100 uniform
    draws, and `importance` one draw with inclusion in proportion to the length of a row's vector and weights 1 / pi.
    Theirs draw with replacement. `importance` is unbiased up to the mean weight, which is made one; the others follow
    the pool through the queries alone.

    Args:
        summary: how vectors are summarised.
        queries: how many random ones begin.
        patience: rounds.
        tolerance: relative error of the worst total.
    """

    summary: Literal["caratheodory", "median_of_means", "importance"] = "caratheodory"
    queries: int = 3
    patience: int = 5
    tolerance: float = 0.01

    name: ClassVar[str] = "autocoreset"

    def __post_init__(self) -> None:
        check_choice("summary", self.summary, ("caratheodory", "median_of_means", "importance"))
        check_count("queries", self.queries)
        check_count("patience", self.patience)
        check_number("tolerance", self.tolerance, low=0.0)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"losses"})

    @property
    def weighted(self) -> bool:
        return True

    def _choose(self, problem: SubsetProblem) -> Subset:
        assert problem.losses is not None
        losses_NQ = torch.cat([block for _, block in problem.losses.blocks()])
        totals_Q = losses_NQ.sum(dim=0, dtype=torch.float64)
        scale_Q = totals_Q.abs().where(totals_Q != 0, torch.ones_like(totals_Q))
        # One row for each total that is kept, and one for the number of rows.
        room = problem.budget - 1 if self.summary == "caratheodory" else len(totals_Q)
        asked = random_order(problem.generator, len(totals_Q))[: min(self.queries, room)].tolist()
        best, least, waited, rounds = None, np.inf, 0, 0
        while True:
            rows, weights = self._summarise(losses_NQ[:, asked], problem)
            error_Q = ((weights @ losses_NQ[rows].double() - totals_Q) / scale_Q).abs()
            worst, rounds = float(error_Q.max()), rounds + 1
            waited = 0 if worst < least else waited + 1
            if worst < least:
                best, least = (rows, weights, len(asked)), worst
            error_Q[asked] = -1.0
            if worst <= self.tolerance or waited == self.patience or len(asked) == min(room, len(totals_Q)):
                break
            asked.append(int(error_Q.argmax()))
        assert best is not None, "the first round is the best so far"
        told = {"queries": len(totals_Q), "asked": best[2], "rounds": rounds, "worst_relative_error": least}
        return Subset(rows=best[0], weights=best[1], told=told)

    def _summarise(self, vectors_NQ: Tensor, problem: SubsetProblem) -> tuple[Tensor, Tensor]:
        """LongTensor [M], rows; float64 [M], weights that sum to about N."""
        count, budget, generator = problem.count, problem.budget, problem.generator
        if self.summary == "caratheodory":
            order = random_order(generator, count).numpy()
            rows, weights = caratheodory(vectors_NQ.numpy(), order, budget)
            return torch.from_numpy(rows), torch.from_numpy(weights)
        if self.summary == "median_of_means":
            return median_of_means(vectors_NQ, budget, generator), torch.full((budget,), count / budget).double()
        inclusion_N = inclusion_probabilities(vectors_NQ.double(), budget, DEFAULT_FLOOR)
        rows_M = systematic_sample(inclusion_N, budget, generator)
        return rows_M, expansion_weights(inclusion_N, rows_M) * count / budget


def median_of_means(vectors_NQ: Tensor, budget: int, generator: torch.Generator) -> Tensor:
    """The draw whose mean is nearest to the mean of all, of 100 uniform ones: LongTensor [M]."""
    mean_Q = vectors_NQ.mean(dim=0, dtype=torch.float64)
    draws = (random_order(generator, len(vectors_NQ))[:budget] for _ in range(_DRAWS))
    return min(draws, key=lambda rows: float((vectors_NQ[rows].mean(dim=0, dtype=torch.float64) - mean_Q).norm()))


def caratheodory(vectors_NQ: NDArray[np.floating], order_N: _Ints, budget: int) -> tuple[_Ints, _Floats]:
    """Rows with weights not negative whose weighted sum, and whose weights' sum, are those of all rows with weight one.

    In each round rows are put into about 2 D groups of equal size, D = Q + 1, and all but D of the groups are given up
    (Caratheodory: D weighted vectors have any sum that more have), so that half of the rows go; the last rounds give up
    as many as are too many.

    Args:
        vectors_NQ: Q at most M - 1.
        order_N: the order in which rows are put into groups.
        budget: M.

    Returns:
        int64 [M], rows; float64 [M].
    """
    rows, kept = order_N, vectors_NQ.shape[1] + 1
    weights = np.ones(len(rows))
    while len(rows) > budget:
        excess = len(rows) - budget
        size = max(1, min(len(rows) // (2 * kept), excess // kept))
        groups = min(2 * kept, len(rows) // size, kept + -(-excess // size))
        inside = rows[: groups * size].reshape(groups, size)
        within = weights[: groups * size].reshape(groups, size)
        terms = np.concatenate([vectors_NQ[inside].astype(np.float64), np.ones((groups, size, 1))], axis=2)
        factors, left = merged(np.einsum("gs,gsd->dg", within, terms))
        # What was looked at comes last in the next round.
        rows = np.concatenate([rows[groups * size :], inside[left].reshape(-1)])
        weights = np.concatenate([weights[groups * size :], (within[left] * factors[left, None]).reshape(-1)])
    return rows, weights


def merged(sums_DG: _Floats) -> tuple[_Floats, _Ints]:
    """Factors not negative of D of the groups, or of all if there are no more, with sums @ factors = sums @ ones.

    Returns:
        float64 [G], zero where a group is given up; int64, the groups that are left.
    """
    scale_D1 = np.abs(sums_DG).max(axis=1, keepdims=True)
    scaled_DG = sums_DG / np.where(scale_D1 > 0, scale_D1, 1.0)
    factors, left = np.ones(sums_DG.shape[1]), np.arange(sums_DG.shape[1])
    while len(left) > len(sums_DG):
        # The last right singular vector changes no sum: there are more columns than rows.
        direction = np.linalg.svd(scaled_DG[:, left])[2][-1]
        direction = direction if direction.max() >= -direction.min() else -direction
        upward = np.flatnonzero(direction > 1e-12)
        lengths = factors[left[upward]] / direction[upward]
        changed = np.maximum(factors[left] - lengths.min() * direction, 0.0)
        gone = upward[lengths.argmin()]  # one at a time, so that no more go than are too many
        changed[gone] = 0.0
        factors[left] = changed
        left = np.delete(left, gone)
    return factors, left
