"""GREATS: the rows whose joint step lowers a validation loss most, by its second-order expansion.

Shape suffixes: N rows of the large batch, M rows of the small batch, V validation rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from corebatch.selectors._checks import check_number
from corebatch.selectors._distances import gram
from corebatch.selectors.base import Choice, Selector

_TOLERANCE = 1e-12  # of the largest score: nearer than this counts as equal


@dataclass(frozen=True, kw_only=True)
class Greats(Selector):
    """Add, one at a time, the row with the largest f_i . v - c sum_S f_i . f_j; weights 1.

    Wang et al., "GREATS: Online Selection of High-Quality Data for LLM Training in Every Iteration", NeurIPS
    2024. v is the mean gradient of the validation examples. The second term, the learning rate times the
    overlap with the rows taken already, is their second-order term with the identity for the Hessian: what a
    step has done already need not be done again.

    Their c is the learning rate, whose size means nothing without the Hessian's. Here it is
    `interaction` x mean |f_i . v| / (M x mean |f_i . f_j| over i != j). So with 1, a row that overlaps with all of
    the other rows as two rows do on average loses, at the end, what the average row gains. Features and
    validation gradients may come in any units.

    Heavily biased, on purpose: it follows the validation gradient and not the large batch's. Ties go to the
    smaller index.

    Args:
        interaction: as above, at least 0. 0 takes the M rows that are best aligned with the validation gradient.

    Raises:
        ConfigError: `interaction` is out of range.
    """

    interaction: float = 1.0

    name: ClassVar[str] = "greats"
    requires: ClassVar[frozenset[str]] = frozenset({"features", "validation"})

    def __post_init__(self) -> None:
        check_number("interaction", self.interaction, low=0.0)

    def _choose(
        self,
        features: Tensor,
        budget: int,
        generator: torch.Generator,
        *,
        losses: Tensor | None,
        validation: Tensor | None,
    ) -> Choice:
        assert validation is not None  # required, so the base has seen to it
        score_N = (features @ validation.mean(dim=0)).cpu()
        overlap_NN = gram(features)
        overlap_NN *= self._coefficient(score_N, overlap_NN, budget)
        tolerance = _TOLERANCE * float(score_N.abs().max())
        rows = torch.zeros(budget, dtype=torch.long)
        gains = torch.zeros(budget, dtype=torch.float64)
        for step in range(budget):
            best = score_N.max()
            row = int((score_N >= best - tolerance).int().argmax())
            rows[step], gains[step] = row, score_N[row]
            score_N -= overlap_NN[row]
            score_N[rows[: step + 1]] = -torch.inf
        return Choice(rows=rows, gains=gains)

    def _coefficient(self, score_N: Tensor, overlap_NN: Tensor, budget: int) -> float:
        count = len(score_N)
        between = float(overlap_NN.abs().sum() - overlap_NN.diagonal().sum()) / (count * (count - 1))
        # Rows that overlap only by rounding do not overlap.
        if between <= _TOLERANCE * float(overlap_NN.diagonal().mean()):
            return 0.0
        return self.interaction * float(score_N.abs().mean()) / (budget * between)
