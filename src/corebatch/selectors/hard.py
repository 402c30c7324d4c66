"""The rows of highest loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corebatch.selectors.base import Choice, Problem, Selector


@dataclass(frozen=True, kw_only=True)
class Hard(Selector):
    """Take the M rows of highest loss, with weights of one; ties go to the smaller index.

    Heavily biased, on purpose. Selective backpropagation (Jiang et al. 2019, arXiv 1910.00762) is a softer
    form. A one-column feature is taken as the loss when no losses are given.
    """

    name: ClassVar[str] = "hard"
    requires: ClassVar[frozenset[str]] = frozenset({"losses"})

    def _choose(self, problem: Problem) -> Choice:
        assert problem.losses is not None  # required, so the base has seen to it
        return Choice(rows=problem.losses.argsort(descending=True, stable=True)[: problem.budget])
