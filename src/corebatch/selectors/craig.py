"""CRAIG: medoids, each weighted by the size of its cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corebatch.selectors.base import Choice, Problem, Selector
from corebatch.selectors.checks import check_choice
from corebatch.selectors.kernels.distances import METRICS, Metric
from corebatch.selectors.kernels.medoids import medoids


@dataclass(frozen=True, kw_only=True)
class Craig(Selector):
    """`facility_location` with cluster-size weights, on Euclidean distances.

    Mirzasoleiman, Bilmes, Leskovec, "Coresets for Data-efficient Training of Machine Learning Models", ICML
    2020, arXiv 1906.01827. Here the weights average 1; in the paper they sum to N.

    Args:
        metric: "l2" (Euclidean), "l1" or "cosine".

    Raises:
        ConfigError: the metric is none of these.
    """

    metric: Metric = "l2"

    name: ClassVar[str] = "craig"
    requires: ClassVar[frozenset[str]] = frozenset({"features"})
    weighted = True

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, METRICS)

    def _choose(self, problem: Problem) -> Choice:
        return medoids(problem, self.metric, weighted=True)
