"""Uniform choice within each source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from corebatch.selectors.base import Choice, Selector
from corebatch.selectors.kernels.inclusion import random_order


@dataclass(frozen=True, kw_only=True)
class Stratified(Selector):
    """Draw uniformly within each source, as many as the source's budget, with weights of one.

    With budgets in proportion to the counts (Neyman 1934, proportional allocation) the mixture of the small
    batch is that of the large one. Without groups there is one stratum: then it is `random`.
    """

    name: ClassVar[str] = "stratified"
    requires: ClassVar[frozenset[str]] = frozenset()
    per_source = True

    def _choose(
        self,
        features: Tensor,
        budget: int,
        generator: torch.Generator,
        *,
        losses: Tensor | None,
        validation: Tensor | None,
    ) -> Choice:
        return Choice(rows=random_order(generator, len(features))[:budget])
