"""Facility location over a data set: medoids that represent every row, in blocks of near rows and then among winners.

Shape suffixes: N rows of the data set, M kept, B rows of a block, K medoids of it, P columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from corebatch.selectors.checks import check_choice, check_number
from corebatch.selectors.kernels import blocks
from corebatch.selectors.kernels.distances import METRICS, Metric
from corebatch.selectors.kernels.greedy import greedy_of_all
from corebatch.selectors.kernels.medoids import Cover
from corebatch.subset.base import Subset, SubsetMethod, SubsetProblem
from corebatch.subset.matrix import Matrix
from corebatch.subset.near import BLOCK, reduced

_WINNERS = (2048, 4096)
"""Where fewer rows are kept than the second, twice as many win in the blocks, at least the first and at most the
second, and the medoids are chosen among them."""
_AHEAD = 3
"""A block's greedy goes on to so many times its share, of which the best of all blocks are taken."""


@dataclass(frozen=True, kw_only=True)
class FacilityLocationSubset(SubsetMethod):
    """Maximise sum_i max_{s in S} (C - d(i, s)) over the data set, greedily; follows the pool, biased: uniform weights
    favour what is spread out.

    One exact greedy up to 2 x `block` rows (Nemhauser, Wolsey, Fisher 1978: at least 1 - 1/e of the optimum). Above
    that the rows are cut into blocks of near rows, in each of which a row may stand for others of the block alone, and
    greedy steps are taken where they gain most (three times each block's share at most); fewer than 4,096 are then
    chosen among twice as many winners, each of which counts as the rows that it stands for. Time grows with N block P,
    memory with N.

    Args:
        metric: "cosine", "l1" or "l2" (Euclidean).
        weights: "uniform", or "cluster_size": in proportion to the rows that a medoid is nearest to, within its block
            (CRAIG: Mirzasoleiman et al. 2020, arXiv 1906.01827, equation 5).
        block: rows of a block, 2 or more.
    """

    metric: Metric = "cosine"
    weights: Literal["uniform", "cluster_size"] = "uniform"
    block: int = BLOCK

    name: ClassVar[str] = "facility_location"

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, METRICS)
        check_choice("weights", self.weights, ("uniform", "cluster_size"))
        check_number("block", self.block, low=2, whole=True)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"features"})

    @property
    def weighted(self) -> bool:
        return self.weights == "cluster_size"

    def _choose(self, problem: SubsetProblem) -> Subset:
        features, budget = problem.features, problem.budget
        assert features is not None
        parts = blocks.near(reduced(features, problem.generator), self.block)
        if len(parts) == 1:
            return self._among(features, parts[0], None, budget)
        low, high = _WINNERS
        winners = min(max(budget, min(high, max(low, 2 * budget))), problem.count)
        kept = self._winners(features, parts, winners)
        sizes = None
        if budget < winners or self.weighted:
            sizes = torch.cat([self._sizes(features, part, mine) for part, mine in zip(parts, kept, strict=True)])
        rows = torch.cat(kept)
        return Subset(rows=rows, weights=sizes) if budget == winners else self._among(features, rows, sizes, budget)

    def _among(self, features: Matrix, rows: Tensor, counts: Tensor | None, budget: int) -> Subset:
        """Medoids of some rows, of which each stands for so many (None: itself)."""
        cover = Cover.of(
            features.take(rows).double(),
            torch.arange(len(rows)),
            self.metric,
            None if counts is None else counts.numpy(),
        )
        places, _ = greedy_of_all(cover.similarities_CC, budget)
        weights = torch.from_numpy(cover.cluster_sizes(places)) if self.weighted else None
        return Subset(rows=rows[torch.from_numpy(places)], weights=weights)

    def _winners(self, features: Matrix, parts: list[Tensor], winners: int) -> list[Tensor]:
        """Of each block the rows that its greedy takes first, as many in all as asked for, where they gain most."""
        orders, falling, owner = [], [], []
        for number, part in enumerate(parts):
            most = min(len(part), _AHEAD * -(-winners * len(part) // len(features)))
            cover = Cover.of(features.take(part).double(), torch.arange(len(part)), self.metric)
            places, gains = greedy_of_all(cover.similarities_CC, most)
            orders.append(part[torch.from_numpy(places)])
            # No block is left without, and rounding must not let a later one pass an earlier one.
            falling.append(np.concatenate([[np.inf], np.minimum.accumulate(gains[1:])]))
            owner.append(np.full(most, number))
        owners = np.concatenate(owner)
        place = np.concatenate([np.arange(len(gains)) for gains in falling])
        best = np.lexsort((owners, place, -np.concatenate(falling)))[:winners]
        taken = np.bincount(owners[best], minlength=len(parts))
        return [order[:count] for order, count in zip(orders, taken.tolist(), strict=True)]

    def _sizes(self, features: Matrix, part: Tensor, medoids: Tensor) -> Tensor:
        """How many rows of its block each medoid is nearest to, the first of equals: float64 [K]."""
        if not len(medoids):
            return torch.zeros(0, dtype=torch.float64)
        rows_BP, medoids_KP = features.take(part), features.take(medoids)
        if self.metric == "cosine":
            unit = torch.nn.functional.normalize
            nearest_B = (unit(rows_BP) @ unit(medoids_KP).T).argmax(dim=1)
        else:
            nearest_B = torch.cdist(rows_BP, medoids_KP, p=1.0 if self.metric == "l1" else 2.0).argmin(dim=1)
        return torch.bincount(nearest_B, minlength=len(medoids)).double()
