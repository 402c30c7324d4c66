"""Herding: rows whose plain mean meets the large batch's mean.

Shape suffixes: N rows of the large batch, M rows of the small batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from corebatch.selectors._distances import gram
from corebatch.selectors.base import Choice, Selector

_TOLERANCE = 1e-12  # of the mean squared norm: errors nearer than this count as equal


@dataclass(frozen=True, kw_only=True)
class Herding(Selector):
    """Add, one at a time, the row that brings the mean of the chosen nearest to the large batch's; weights 1.

    Welling 2009; Chen, Welling, Smola, "Super-Samples from Kernel Herding", UAI 2010, arXiv 1203.3472. Theirs
    supposes rows of equal norm; here the error ||sum_S f - |S| mean f||^2 itself is minimised, and no row is
    taken twice. Rows of small norm are favoured, so the result is too short. Ties go to the smaller index.
    """

    name: ClassVar[str] = "herding"
    requires: ClassVar[frozenset[str]] = frozenset({"features"})

    def _choose(
        self,
        features: Tensor,
        budget: int,
        generator: torch.Generator,
        *,
        losses: Tensor | None,
        validation: Tensor | None,
    ) -> Choice:
        gram_NN = gram(features)
        squares_N = gram_NN.diagonal()
        mean_N = gram_NN.mean(dim=1)
        tolerance = _TOLERANCE * float(squares_N.mean())
        # f_j . (sum_chosen f - k mean f), where k counts the row that is added next
        slope_N = torch.zeros_like(mean_N)
        taken_N = torch.zeros(len(mean_N), dtype=torch.bool)
        rows = torch.zeros(budget, dtype=torch.long)
        for step in range(budget):
            slope_N -= mean_N
            error_N = (squares_N + 2.0 * slope_N).masked_fill_(taken_N, torch.inf)
            row = int((error_N <= error_N.min() + tolerance).int().argmax())
            rows[step] = row
            taken_N[row] = True
            slope_N += gram_NN[row]
        return Choice(rows=rows)
