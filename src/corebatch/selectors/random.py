"""Uniform choice: what every other selector is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corebatch.selectors.base import Choice, Problem, Selector
from corebatch.selectors.kernels.inclusion import random_order


@dataclass(frozen=True, kw_only=True)
class Random(Selector):
    """Draw rows uniformly without replacement, with weights of one. Unbiased; looks at no feature."""

    name: ClassVar[str] = "random"
    requires: ClassVar[frozenset[str]] = frozenset()

    def _choose(self, problem: Problem) -> Choice:
        return Choice(rows=random_order(problem.generator, len(problem.features))[: problem.budget])
