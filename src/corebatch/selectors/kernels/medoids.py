"""Medoids of many rows: within blocks of near rows, and then among the winners.

Up to 4,096 rows there is one cover, with the distances of all pairs. Above that each block of near rows has a cover
of its own; greedy steps are taken wherever they gain most. That is the exact greedy where a row may stand for rows of
its own block alone. If fewer than 4,096 are wanted, twice as many winners are taken so (2,048 at least, 4,096 at most),
and the medoids are then chosen among them: a winner counts as often as there are rows that it stands for.

Shape suffixes: N rows of the large batch, M rows of the small batch, C rows of one cover, K medoids of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corebatch.selectors.base import Choice, Problem
from corebatch.selectors.kernels import blocks
from corebatch.selectors.kernels.distances import Metric, distances, some
from corebatch.selectors.kernels.greedy import TOLERANCE, greedy_of_all

_BYTES = 500_000_000  # of the blocks' distances together

_Floats = NDArray[np.floating]
_Ints = NDArray[np.int64]
Greedy = Callable[[_Floats, int], tuple[_Ints, _Floats]]
Improve = Callable[[_Floats, _Ints], _Ints]


@dataclass(slots=True)
class Cover:
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
    ) -> Cover:
        """The cover of some rows, each of which stands for itself or for so many."""
        matrix = distances(some(features_NP, rows), metric).numpy()
        cover = cls(rows, np.ones(len(rows)) if counts_C is None else counts_C, float(matrix.max()), matrix)
        if counts_C is not None:
            matrix *= counts_C.astype(matrix.dtype)
        cover.turn()
        return cover

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
        """How many rows each medoid is nearest to, of those that this cover stands for; a tie is shared."""
        similarities_KC = self.similarities_CC[places_K]
        best_C = similarities_KC.max(axis=0)
        nearest_KC = similarities_KC >= best_C - TOLERANCE * best_C.max()
        sizes: NDArray[np.float64] = (nearest_KC / nearest_KC.sum(axis=0)) @ self.counts_C
        return sizes


def medoids(
    problem: Problem,
    metric: Metric,
    *,
    greedy: Greedy = greedy_of_all,
    improve: Improve | None = None,
    weighted: bool = False,
) -> Choice:
    """Choose medoids by greedy facility location.

    Args:
        problem: features and a budget.
        metric: the distance.
        greedy: chooses in the last cover: the only one, or the winners'.
        improve: exchanges medoids of the last cover, or of every block where there are no winners.
        weighted: whether weights are M / N times the clusters' sizes; otherwise there are none.
    """
    features_NP, budget = problem.features, problem.budget
    count = len(features_NP)
    if blocks.fits(count):
        cover = Cover.of(features_NP, torch.arange(count), metric)
        return _last(cover, budget, count, greedy, improve, weighted)
    winners = min(2 * blocks.BLOCK, max(blocks.BLOCK, 2 * budget))
    most = min(blocks.BLOCK, max(1, _BYTES // (8 * count)))
    covers = [Cover.of(features_NP, rows, metric) for rows in blocks.near(features_NP, most)]
    places, gains = merged_greedy(covers, max(budget, winners))
    if budget < winners:
        rows = torch.cat([c.rows[torch.from_numpy(k)] for c, k in zip(covers, places, strict=True)])
        counts = np.concatenate([c.cluster_sizes(k) for c, k in zip(covers, places, strict=True) if len(k)])
        covers.clear()
        rows, order = rows.sort()
        cover = Cover.of(features_NP, rows, metric, counts[order.numpy()])
        return _last(cover, budget, count, greedy, improve, weighted)
    if improve is not None:
        places = [c.improved(k, improve) if len(k) else k for c, k in zip(covers, places, strict=True)]
    sizes = [c.cluster_sizes(k) for c, k in zip(covers, places, strict=True) if len(k)] if weighted else []
    return Choice(
        rows=torch.cat([c.rows[torch.from_numpy(k)] for c, k in zip(covers, places, strict=True)]),
        weights=torch.from_numpy(np.concatenate(sizes)) * (budget / count) if weighted else None,
        gains=None if improve is not None else torch.from_numpy(np.concatenate(gains)),
    )


def _last(cover: Cover, budget: int, count: int, greedy: Greedy, improve: Improve | None, weighted: bool) -> Choice:
    places, gains = greedy(cover.similarities_CC, budget)
    if improve is not None:
        places = cover.improved(places, improve)
    return Choice(
        rows=cover.rows[torch.from_numpy(places)],
        weights=torch.from_numpy(cover.cluster_sizes(places)) * (budget / count) if weighted else None,
        gains=None if improve is not None else torch.from_numpy(gains),
    )


def merged_greedy(covers: list[Cover], budget: int) -> tuple[list[_Ints], list[_Floats]]:
    """The exact greedy over several covers together, of which none helps another: for each its medoids, in the order
    chosen, and their gains.

    Each cover's greedy order does not depend on how many it is allowed, so they are solved apart and merged by gain.
    Similarities count from one largest distance for all, which adds to first gains alone.
    """
    solved = [greedy_of_all(cover.similarities_CC, len(cover.rows)) for cover in covers]
    largest = max(cover.largest for cover in covers)
    falling, places = [], []
    for cover, (_, gains) in zip(covers, solved, strict=True):
        gains[0] += (largest - cover.largest) * cover.counts_C.sum()
        # Rounding must not let a later one pass an earlier one; and no cover is left without.
        falling.append(np.concatenate([[np.inf], np.minimum.accumulate(gains[1:])]))
        places.append(np.arange(len(gains)))
    owner = np.repeat(np.arange(len(covers)), [len(gains) for gains in falling])
    # Where nothing is left to gain, covers take turns.
    best = np.lexsort((owner, np.concatenate(places), -np.concatenate(falling)))[:budget]
    taken = np.bincount(owner[best], minlength=len(covers))
    return (
        [places[:count] for (places, _), count in zip(solved, taken, strict=True)],
        [gains[:count] for (_, gains), count in zip(solved, taken, strict=True)],
    )
