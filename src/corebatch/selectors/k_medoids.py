"""k-medoids: the rows with the least total distance from every row to the nearest of them.

Shape suffixes: N rows of the large batch, M rows of the small batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corebatch.selectors.base import Choice, Problem, Selector
from corebatch.selectors.checks import check_choice, check_number
from corebatch.selectors.kernels.distances import METRICS, Metric
from corebatch.selectors.kernels.exchange import exchange
from corebatch.selectors.kernels.greedy import TOLERANCE
from corebatch.selectors.kernels.medoids import medoids


@dataclass(frozen=True, kw_only=True)
class KMedoids(Selector):
    """Minimise sum_i min_{s in S} d(i, s): start from `facility_location`, then exchange medoids; weights 1.

    Kaufman, Rousseeuw 1990 (PAM), with the start that greedy facility location gives (the same objective, in
    other words) and the steepest exchange until none helps. As biased as facility location: a better optimum
    of the same objective does not make the plain mean of medoids a better estimate. Above 4,096 rows as
    `facility_location`: exchanges are among the winners of the blocks, or within the blocks.

    Args:
        metric: "l1", "l2" (Euclidean) or "cosine".
        max_swaps: stop after so many exchanges; None is as many as there are rows, which is rarely reached.

    Raises:
        ConfigError: an option is out of range.
    """

    metric: Metric = "l1"
    max_swaps: int | None = None

    name: ClassVar[str] = "k_medoids"
    requires: ClassVar[frozenset[str]] = frozenset({"features"})
    per_source = True

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, METRICS)
        if self.max_swaps is not None:
            check_number("max_swaps", self.max_swaps, low=0, whole=True)

    def _choose(self, problem: Problem) -> Choice:
        max_swaps = len(problem.features) if self.max_swaps is None else self.max_swaps
        return medoids(
            problem, self.metric, improve=lambda matrix, start: exchange(matrix, start, max_swaps, TOLERANCE)
        )
