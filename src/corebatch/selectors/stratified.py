"""Uniform choice within each source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corebatch.selectors.random import Random


@dataclass(frozen=True, kw_only=True)
class Stratified(Random):
    """Draw uniformly within each source, as many as the source's budget, with weights of one.

    With budgets in proportion to the counts (Neyman 1934, proportional allocation) the mixture of the small batch is
    that of the large one, as nearly as whole rows can: budgets are rounded at random (`corebatch.sources`), so that
    every row is as likely. Without groups there is one stratum: then it is `random`.
    """

    name: ClassVar[str] = "stratified"
    per_source = True
