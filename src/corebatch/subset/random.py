"""Uniform choice: what every other method is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corebatch.selectors.kernels.inclusion import random_order
from corebatch.subset.base import Subset, SubsetMethod, SubsetProblem


@dataclass(frozen=True, kw_only=True)
class RandomSubset(SubsetMethod):
    """Keep rows drawn uniformly without replacement, with weights of one. Unbiased; looks at nothing."""

    name: ClassVar[str] = "random"

    def _choose(self, problem: SubsetProblem) -> Subset:
        return Subset(rows=random_order(problem.generator, problem.count)[: problem.budget])
