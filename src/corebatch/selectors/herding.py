"""Herding: rows whose plain mean meets the large batch's mean.

Shape suffixes: N rows of the large batch, M rows of the small batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from corebatch.selectors.base import Choice, Problem, Selector
from corebatch.selectors.kernels import blocks
from corebatch.selectors.kernels.distances import row_products, some, squared_norms

_TOLERANCE = 1e-12  # of the mean squared norm: errors nearer than this count as equal


@dataclass(frozen=True, kw_only=True)
class Herding(Selector):
    """Add, one at a time, the row that brings the mean of the chosen nearest to the large batch's; weights 1.

    Welling 2009; Chen, Welling, Smola, "Super-Samples from Kernel Herding", UAI 2010, arXiv 1203.3472. Theirs
    supposes rows of equal norm; here the error ||sum_S f - |S| mean f||^2 itself is minimised, and no row is
    taken twice. Rows of small norm are favoured, so the result is too short. Ties go to the smaller index.

    More than 512 of more than 4,096 rows are taken from blocks in turn, each a cross-section of all rows; the errors of
    one are made up for by the next.
    """

    name: ClassVar[str] = "herding"
    requires: ClassVar[frozenset[str]] = frozenset({"features"})

    def _choose(self, problem: Problem) -> Choice:
        features, budget = problem.features, problem.budget
        mean_P = features.mean(dim=0)
        tolerance = _TOLERANCE * float(squared_norms(features).mean())
        off_P = torch.zeros_like(mean_P)  # sum_chosen f - k mean f over the blocks before
        found: list[Tensor] = []
        for inside, count in blocks.for_greedy(features, budget):
            part = some(features, inside)
            rows = nearest_mean(part, count, mean_P, off_P, tolerance)
            found.append(inside[rows])
            off_P = off_P + part[rows.to(part.device)].sum(dim=0) - count * mean_P
        return Choice(rows=torch.cat(found))


def nearest_mean(features_NP: Tensor, budget: int, mean_P: Tensor, off_P: Tensor, tolerance: float) -> Tensor:
    """Rows that, one after the other, keep ||off + sum_chosen f - k mean|| smallest: LongTensor [M], as chosen.

    Args:
        features_NP: float64.
        budget: M.
        mean_P: what the mean is to meet.
        off_P: what a sum over rows chosen before is off by.
        tolerance: errors nearer than this count as equal.
    """
    products = row_products(features_NP)
    squares_N = squared_norms(features_NP)
    mean_N = (features_NP @ mean_P).cpu()
    # f_j . (sum_chosen f - k mean f), where k counts the row that is added next
    slope_N = (features_NP @ off_P).cpu()
    taken_N = torch.zeros(len(mean_N), dtype=torch.bool)
    rows = torch.zeros(budget, dtype=torch.long)
    for step in range(budget):
        slope_N -= mean_N
        error_N = (squares_N + 2.0 * slope_N).masked_fill_(taken_N, torch.inf)
        row = int((error_N <= error_N.min() + tolerance).int().argmax())
        rows[step] = row
        taken_N[row] = True
        slope_N += products(row)
    return rows
