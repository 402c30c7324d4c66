"""GORACS: rows whose distribution is nearest to a target's by optimal transport, and whose gradients are large.

Shape suffixes: N rows of the pool or of a part of it, V rows of the target, M kept rows, K candidates of an exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from corebatch.errors import InputError, MissingExtraError
from corebatch.options import check_count
from corebatch.selectors.checks import check_number
from corebatch.selectors.kernels.blocks import shares
from corebatch.selectors.kernels.greedy import greedy_of_all
from corebatch.selectors.kernels.inclusion import random_order
from corebatch.subset.base import Follows, Subset, SubsetMethod, SubsetProblem

PART = 8192
"""Rows of a part of the pool."""
TARGET = 1024
"""Rows of the target that are looked at: 64 MB of costs."""

_STEPS = 1_000_000  # of the network simplex

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class GoracsSubset(SubsetMethod):
    """Minimise W(kept, target) - gradient_weight x mean of the kept scores: a greedy start, then exchanges; weights 1.

    Mei et al., "GORACS: Group-level Optimal Transport-guided Coreset Selection for LLM-based Recommender Systems",
    KDD 2025, arXiv 2506.04015: equation 10, algorithm 1. W is the optimal-transport distance between the two uniform
    distributions, with Euclidean distances over their largest; `scores` are meant to be gradient norms (scorer
    `gradient_norm`), and count over their largest. The two bound the test loss of a model trained on the kept rows. The
    start minimises the relaxation in which each target row goes to its nearest kept row. Then, again and again, the K
    kept rows that cost most and the K others that promise most, by the dual problem, are exchanged where that lowers W.

    Their estimate of what a row adds is max_y sum_v min(c_iv - f_v - y, 0) / V + y / M (equations 15, 16). It is
    attained at the V/M-th smallest c_iv - f_v; the official code takes the V/M-th largest, and f over all kept rows
    where the row itself is to be left out. Pairs are tried in the order of the bound that the two estimates give for
    the exchange, and not at all if it is no improvement, where theirs are tried as they come. Classes (algorithm 2) are
    not distinguished.

    Time grows with N M V. Above 8,192 rows the pool is dealt at random into parts, each with its share of what is kept,
    which share the exchanges; of the target 1,024 random rows are looked at. Biased on purpose: it follows the target.

    Args:
        gradient_weight: lambda; 0 needs no scores. Theirs is 0.1 to 0.5.
        exchanges: at most so many, in all parts together.
        candidates: K; of the pairs 4 K are tried at most before the search ends.
    """

    gradient_weight: float = 0.1
    exchanges: int = 100
    candidates: int = 30

    name: ClassVar[str] = "goracs"
    follows: ClassVar[Follows] = "target"
    score: ClassVar[str] = "gradient_norm"

    def __post_init__(self) -> None:
        check_number("gradient_weight", self.gradient_weight, low=0.0)
        check_count("exchanges", self.exchanges, least=0)
        check_count("candidates", self.candidates)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"features", "target"} | ({"scores"} if self.gradient_weight else set()))

    def _choose(self, problem: SubsetProblem) -> Subset:
        assert problem.features is not None
        assert problem.target is not None
        target_VP = problem.target.take(random_order(problem.generator, len(problem.target))[:TARGET].sort().values)
        parts = [random_order(problem.generator, problem.count)]
        if problem.count > PART:
            parts = list(parts[0].tensor_split(-(-problem.count // PART)))
        exchanges = shares([len(part) for part in parts], max(self.exchanges, len(parts)) if self.exchanges else 0)
        budgets = shares([len(part) for part in parts], problem.budget)
        kept, starts, ends, exchanged = [], 0.0, 0.0, 0
        for part, budget, most in zip(parts, budgets, exchanges, strict=True):
            if not budget:
                continue
            rows = part.sort().values
            costs = torch.cdist(problem.features.take(rows).double(), target_VP.double())
            if self.gradient_weight:
                costs = _over_largest(costs) - self.gradient_weight * self._sizes(problem)[rows][:, None]
            costs_NV = _over_largest(costs - costs.min()).numpy()
            chosen = nearest_start(costs_NV, budget)
            chosen, begun, ended, times = exchange(costs_NV, chosen, most, self.candidates)
            kept.append(rows[torch.from_numpy(chosen)])
            starts, ends, exchanged = starts + begun * budget, ends + ended * budget, exchanged + times
        told = {
            "parts": len(parts),
            "target_rows": len(target_VP),
            "exchanges": exchanged,
            "cost_of_start": starts / problem.budget,
            "cost": ends / problem.budget,
        }
        return Subset(rows=torch.cat(kept), told=told)

    def _sizes(self, problem: SubsetProblem) -> torch.Tensor:
        assert problem.scores is not None
        least = float(problem.scores.min())
        if least < 0:
            raise InputError(f"`scores` of `{self.name}` should be sizes of gradients, not negative. Found {least}.")
        return _over_largest(problem.scores)


def _over_largest(values: torch.Tensor) -> torch.Tensor:
    largest = float(values.max())
    return values / largest if largest > 0 else values


def nearest_start(costs_NV: _Floats, budget: int) -> _Ints:
    """Rows that minimise the mean over the target of the least cost, one after the other (the relaxation of W).

    As in the official code, rows that are nearest to no target row do not count, as long as more than M rows are
    nearest to one. Where fewer are, and no row lowers the cost any more, it begins anew with the rows that are left;
    the official code takes those in order.

    Args:
        costs_NV: in [0, 1].
        budget: M.
    """
    similarities_NV = 1.0 - costs_NV
    if len(np.unique(costs_NV.argmin(axis=0))) <= budget:
        return _rounds(similarities_NV, budget)
    reach = budget
    while True:
        order, _ = greedy_of_all(similarities_NV, reach)
        used = [order[place] for place in np.unique(costs_NV[order].argmin(axis=0))]
        if len(used) >= budget:
            break
        reach = min(2 * reach, len(costs_NV))
    for length in range(budget, reach + 1):
        used = np.unique(costs_NV[order[:length]].argmin(axis=0)).tolist()
        if len(used) == budget:
            return np.asarray(order[used])
    raise AssertionError("one row more serves one row more at most")


def _rounds(similarities_NV: _Floats, budget: int) -> _Ints:
    """Greedy until nothing is left to gain, over the rows that are left again and again."""
    left, chosen = np.arange(len(similarities_NV)), np.empty(0, dtype=np.int64)
    while len(chosen) < budget:
        order, gains = greedy_of_all(similarities_NV[left], min(budget - len(chosen), len(left)))
        found = order[gains > 0] if gains.any() else order
        chosen, left = np.concatenate([chosen, left[found]]), np.delete(left, found)
    return chosen


def exchange(costs_NV: _Floats, kept_M: _Ints, most: int, candidates: int) -> tuple[_Ints, float, float, int]:
    """Exchange kept rows for others, at most so often, where W falls.

    Returns:
        int64 [M], rows; W before and after; how many exchanges were made.

    Raises:
        MissingExtraError: POT is not installed.
    """
    value, dual_M = transport(costs_NV[kept_M])
    start = value
    for times in range(most):
        for inside, outside in _promising(costs_NV, kept_M, dual_M, value, candidates):
            changed_M = kept_M.copy()
            changed_M[inside] = outside
            changed, changed_dual_M = transport(costs_NV[changed_M])
            if changed < value - 1e-12:
                value, dual_M, kept_M = changed, changed_dual_M, changed_M
                break
        else:
            return kept_M, start, value, times
    return kept_M, start, value, most


def transport(costs_MV: _Floats) -> tuple[float, _Floats]:
    """The least mean cost of carrying the uniform distribution over M rows to that over V; dual variables [M]."""
    try:
        import ot
    except ImportError as error:
        raise MissingExtraError("GORACS needs POT: pip install 'corebatch[subset]'.") from error
    rows, columns = costs_MV.shape
    value, log = ot.emd2(
        np.full(rows, 1.0 / rows), np.full(columns, 1.0 / columns), costs_MV, numItermax=_STEPS, log=True
    )
    return float(value), np.asarray(log["u"])


def _promising(
    costs_NV: _Floats, kept_M: _Ints, dual_M: _Floats, value: float, candidates: int
) -> list[tuple[int, int]]:
    """Pairs of a place in `kept_M` and another row whose exchange may lower W, the least bound first; 4 K at most."""
    count = len(kept_M)
    reduced_MV = costs_NV[kept_M] - dual_M[:, None]
    owner_V = reduced_MV.argmin(axis=0)
    least_V = reduced_MV.min(axis=0)
    without_MV = np.repeat(least_V[None], count, axis=0)  # the least over the other kept rows
    if count > 1:
        without_MV[owner_V, np.arange(len(owner_V))] = np.partition(reduced_MV, 1, axis=0)[1]
    others = np.setdiff1d(np.arange(len(costs_NV)), kept_M)
    entering = others[added(costs_NV[others] - least_V, count).argsort(kind="stable")[:candidates]]
    leaving = added(costs_NV[kept_M] - without_MV, count).argsort(kind="stable")[::-1][:candidates]
    pairs: list[tuple[float, int, int]] = []
    for place in leaving:
        # Any duals give a lower bound of W: those of the rows that stay, and the best for the one that enters.
        staying = float(without_MV[place].mean() + (dual_M.sum() - dual_M[place]) / count)
        bound_K = staying + added(costs_NV[entering] - without_MV[place], count)
        pairs += [(bound_K[k], int(place), int(entering[k])) for k in np.flatnonzero(bound_K < value - 1e-12)]
    return [(place, row) for _, place, row in sorted(pairs)[: 4 * candidates]]


def added(excess_KV: _Floats, count: int) -> _Floats:
    """max_y of mean_v min(excess_v - y, 0) + y / M, what a row of mass 1 / M adds to the dual: float64 [K]."""
    columns = excess_KV.shape[1]
    rank = min(-(-columns // count), columns) - 1
    y_K1 = np.partition(excess_KV, rank, axis=1)[:, rank : rank + 1]
    result: Any = np.minimum(excess_KV - y_K1, 0.0).mean(axis=1) + y_K1[:, 0] / count
    return np.asarray(result)
