"""SimCore: rows of a large open set that lie near a target set, until the nearest that are left lie far.

Shape suffixes: K centers of the target, V rows of the target, P columns, D places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from corebatch.options import check_count
from corebatch.selectors.checks import check_number
from corebatch.selectors.kernels.inclusion import random_order
from corebatch.subset.base import Follows, Subset, SubsetMethod, SubsetProblem
from corebatch.subset.k_means import k_means
from corebatch.subset.nearest import cosines, directions, windows


@dataclass(frozen=True, kw_only=True)
class SimCoreSubset(SubsetMethod):
    """Round by round, each center of the target takes the row that is most similar to it; weights of one.

    Kim, Bae, Yun, "Coreset Sampling from Open-Set for Fine-Grained Self-Supervised Learning", CVPR 2023, arXiv
    2303.11101, equation 3: facility location from the target, sum_v max_{s in S} cos(v, s), solved again and again over
    the rows that are left; the target is stood for by the directions of its k-means centers. The defaults are the
    authors'. With `stop`, rounds end when their mean similarity falls below `stop` times that of round `patience`: then
    fewer rows are kept than asked for. Biased on purpose: it follows the target.

    As in their code, a row that two centers take in one round counts once, and the last round keeps a random part of
    its rows if not all fit. k-means begins once, where theirs begins ten times in older versions of scikit-learn.

    Args:
        centers: K; every row of the target is a center if it has no more.
        stop: the share, in (0, 1]; None: never.
        patience: the round whose similarity is the measure; fewer for many centers.
    """

    centers: int = 100
    stop: float | None = 0.95
    patience: int = 20

    name: ClassVar[str] = "simcore"
    follows: ClassVar[Follows] = "target"

    def __post_init__(self) -> None:
        check_count("centers", self.centers)
        check_count("patience", self.patience)
        if self.stop is not None:
            check_number("stop", self.stop, low=1e-6, high=1.0)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"features", "target"})

    @property
    def exact(self) -> bool:
        return self.stop is None

    def _choose(self, problem: SubsetProblem) -> Subset:
        assert problem.features is not None
        assert problem.target is not None
        units_VP = directions(torch.cat([block for _, block in problem.target.blocks()]))
        if self.centers < len(units_VP):
            units_VP = directions(k_means(units_VP, self.centers, problem.generator))
        nearest = windows(cosines(units_VP, problem.features), len(units_VP), problem.count, problem.budget)
        rounds = _Rounds(nearest, problem.count)
        kept: list[int] = []
        threshold, similarities = -np.inf, []
        while len(kept) < problem.budget:
            rows, similarity = rounds.next()
            similarities.append(similarity)
            if self.stop is not None and len(similarities) == self.patience:
                threshold = self.stop * similarity
            if kept and similarity < threshold:
                break
            room = problem.budget - len(kept)
            if len(rows) > room:
                rows = [rows[place] for place in random_order(problem.generator, len(rows))[:room]]
            rounds.taken[rows] = True
            kept += rows
        told = {
            "centers": len(units_VP),
            "rounds": len(similarities),
            "stopped": len(kept) < problem.budget,
            "first_similarity": similarities[0],
            "last_similarity": similarities[-1],
        }
        return Subset(rows=torch.tensor(kept), told=told)


class _Rounds:
    """Each center's next row, skipping those taken in earlier rounds.

    Windows that have come are held until all centers have passed them: at most 8 bytes for each center and row.
    """

    def __init__(self, nearest: Iterator[tuple[Tensor, Tensor]], count: int) -> None:
        self.taken = np.zeros(count, dtype=bool)
        self._nearest = nearest
        rows, similarities = next(nearest)
        self._rows, self._similarities = rows.int().numpy(), similarities.numpy()
        self._place = [0] * len(rows)

    def next(self) -> tuple[list[int], float]:
        """The rows of the round, each once, in the order of the centers; and the mean similarity over centers."""
        found, total = [], 0.0
        for center in range(len(self._place)):
            row, similarity = self._next_of(center)
            found.append(row)
            total += similarity
        return list(dict.fromkeys(found)), total / len(found)

    def _next_of(self, center: int) -> tuple[int, float]:
        while True:
            place = self._place[center]
            if place == self._rows.shape[1]:
                rows, similarities = next(self._nearest)
                self._rows = np.concatenate([self._rows, rows.int().numpy()], axis=1)
                self._similarities = np.concatenate([self._similarities, similarities.numpy()], axis=1)
            self._place[center] = place + 1
            row = int(self._rows[center, place])
            if not self.taken[row]:
                return row, float(self._similarities[center, place])
