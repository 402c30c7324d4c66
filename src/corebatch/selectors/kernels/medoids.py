"""Medoids of many rows: within blocks of near rows, and then among the winners.

Up to 4,096 rows there is one problem, with the distances of all pairs. Above that each block of near rows is a problem
of its own; greedy steps are taken wherever they gain most. That is the exact greedy where a row may stand for rows of
its own block alone. If fewer than 4,096 are wanted, twice as many winners are taken so (2,048 at least, 4,096 at most),
and the medoids are then chosen among them: a winner counts as often as there are rows that it stands for.

Shape suffixes: N rows of the large batch, M rows of the small batch, C rows of one problem, K medoids of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corebatch.selectors.base import Choice
from corebatch.selectors.kernels import blocks as _blocks
from corebatch.selectors.kernels.distances import Metric, distances, some
from corebatch.selectors.kernels.greedy import TOLERANCE, greedy_of_all

_BYTES = 500_000_000  # of the blocks' distances together

_Floats = NDArray[np.floating]
_Ints = NDArray[np.int64]
Greedy = Callable[[_Floats, int], tuple[_Ints, _Floats]]
Improve = Callable[[_Floats, _Ints], _Ints]


@dataclass(slots=True)
class Problem:
    """Rows to be represented, which are the candidates too.

    Attributes:
        rows: LongTensor [C], of the large batch.
        counts_C: float64 [C]: how many rows of the large batch each stands for.
        largest: the largest distance.
        similarities_CC: [C, C]: entry [j, i] is counts[i] (largest - distance of i and j).
    """

    rows: Tensor
    counts_C: NDArray[np.float64]
    largest: float
    similarities_CC: _Floats

    @classmethod
    def of(
        cls, features_NP: Tensor, rows: Tensor, metric: Metric, counts_C: NDArray[np.float64] | None = None
    ) -> Problem:
        """The problem of some rows, each of which stands for itself or for so many."""
        matrix = distances(some(features_NP, rows), metric).numpy()
        problem = cls(rows, np.ones(len(rows)) if counts_C is None else counts_C, float(matrix.max()), matrix)
        if counts_C is not None:
            matrix *= counts_C.astype(matrix.dtype)
        problem.turn()
        return problem

    def turn(self) -> None:
        """Similarities into distances, or back; in place, since there is one C x C matrix."""
        self.similarities_CC *= -1.0
        self.similarities_CC += (self.largest * self.counts_C).astype(self.similarities_CC.dtype)

    def improved(self, places_K: _Ints, improve: Improve) -> _Ints:
        """Other medoids, as many, by a function of distances (times counts) and medoids."""
        self.turn()
        places_K = improve(self.similarities_CC, places_K)
        self.turn()
        return places_K

    def cluster_sizes(self, places_K: _Ints) -> NDArray[np.float64]:
        """How many rows each medoid is nearest to, of those that this problem stands for; a tie is shared."""
        similarities_KC = self.similarities_CC[places_K]
        best_C = similarities_KC.max(axis=0)
        nearest_KC = similarities_KC >= best_C - TOLERANCE * best_C.max()
        sizes: NDArray[np.float64] = (nearest_KC / nearest_KC.sum(axis=0)) @ self.counts_C
        return sizes


def medoids(
    features_NP: Tensor,
    budget: int,
    metric: Metric,
    *,
    greedy: Greedy = greedy_of_all,
    improve: Improve | None = None,
    weighted: bool = False,
) -> Choice:
    """Choose medoids by greedy facility location.

    Args:
        features_NP: float64.
        budget: M, with 0 < M < N.
        metric: the distance.
        greedy: chooses in the last problem: the only one, or the winners'.
        improve: exchanges medoids of the last problem, or of every block where there are no winners.
        weighted: whether weights are M / N times the clusters' sizes; otherwise there are none.
    """
    everything = torch.arange(len(features_NP))
    if _blocks.fits(len(features_NP)):
        return _last(Problem.of(features_NP, everything, metric), budget, len(features_NP), greedy, improve, weighted)
    winners = min(2 * _blocks.BLOCK, max(_blocks.BLOCK, 2 * budget))
    most = min(_blocks.BLOCK, max(1, _BYTES // (8 * len(features_NP))))
    problems = [Problem.of(features_NP, rows, metric) for rows in _blocks.near(features_NP, most)]
    places, gains = merged_greedy(problems, max(budget, winners))
    if budget < winners:
        rows = torch.cat([p.rows[torch.from_numpy(k)] for p, k in zip(problems, places, strict=True)])
        counts = np.concatenate([p.cluster_sizes(k) for p, k in zip(problems, places, strict=True) if len(k)])
        problems.clear()
        rows, order = rows.sort()
        problem = Problem.of(features_NP, rows, metric, counts[order.numpy()])
        return _last(problem, budget, len(features_NP), greedy, improve, weighted)
    if improve is not None:
        places = [p.improved(k, improve) if len(k) else k for p, k in zip(problems, places, strict=True)]
    sizes = [p.cluster_sizes(k) for p, k in zip(problems, places, strict=True) if len(k)] if weighted else []
    return Choice(
        rows=torch.cat([p.rows[torch.from_numpy(k)] for p, k in zip(problems, places, strict=True)]),
        weights=torch.from_numpy(np.concatenate(sizes)) * (budget / len(features_NP)) if weighted else None,
        gains=None if improve is not None else torch.from_numpy(np.concatenate(gains)),
    )


def _last(problem: Problem, budget: int, count: int, greedy: Greedy, improve: Improve | None, weighted: bool) -> Choice:
    places, gains = greedy(problem.similarities_CC, budget)
    if improve is not None:
        places = problem.improved(places, improve)
    return Choice(
        rows=problem.rows[torch.from_numpy(places)],
        weights=torch.from_numpy(problem.cluster_sizes(places)) * (budget / count) if weighted else None,
        gains=None if improve is not None else torch.from_numpy(gains),
    )


def merged_greedy(problems: list[Problem], budget: int) -> tuple[list[_Ints], list[_Floats]]:
    """The exact greedy over several problems together, of which none helps another: for each its medoids, in the order
    chosen, and their gains.

    Each problem's greedy order does not depend on how many it is allowed, so they are solved apart and merged by gain.
    Similarities count from one largest distance for all, which adds to first gains alone.
    """
    solved = [greedy_of_all(problem.similarities_CC, len(problem.rows)) for problem in problems]
    largest = max(problem.largest for problem in problems)
    falling, places = [], []
    for problem, (_, gains) in zip(problems, solved, strict=True):
        gains[0] += (largest - problem.largest) * problem.counts_C.sum()
        # Rounding must not let a later one pass an earlier one; and no problem is left without.
        falling.append(np.concatenate([[np.inf], np.minimum.accumulate(gains[1:])]))
        places.append(np.arange(len(gains)))
    owner = np.repeat(np.arange(len(problems)), [len(gains) for gains in falling])
    # Where nothing is left to gain, problems take turns.
    best = np.lexsort((owner, np.concatenate(places), -np.concatenate(falling)))[:budget]
    taken = np.bincount(owner[best], minlength=len(problems))
    return (
        [places[:count] for (places, _), count in zip(solved, taken, strict=True)],
        [gains[:count] for (_, gains), count in zip(solved, taken, strict=True)],
    )
