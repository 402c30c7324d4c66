"""Uniform choice within each source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from corebatch.selectors.kernels.inclusion import random_order
from corebatch.sources import split
from corebatch.subset.base import Subset, SubsetMethod, SubsetProblem


@dataclass(frozen=True, kw_only=True)
class StratifiedSubset(SubsetMethod):
    """Keep the same share of every source, drawn uniformly, with weights of one.

    Proportional allocation (Neyman 1934): what is left by rounding is drawn, so that every row is as likely.
    """

    name: ClassVar[str] = "stratified"

    def _choose(self, problem: SubsetProblem) -> Subset:
        groups = split(problem.sources, problem.budget, per_source=True, generator=problem.generator)
        kept = [group.members[random_order(problem.generator, len(group.members))[: group.budget]] for group in groups]
        return Subset(rows=torch.cat(kept))
