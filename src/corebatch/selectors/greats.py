"""GREATS: the rows whose joint step lowers a validation loss most, by its second-order expansion.

Shape suffixes: N rows of the large batch, M rows of the small batch, V validation rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from corebatch.errors import ConfigError
from corebatch.selectors.base import Choice, Problem, Selector
from corebatch.selectors.checks import check_number
from corebatch.selectors.kernels import blocks
from corebatch.selectors.kernels.distances import gram, row_products, some

_TOLERANCE = 1e-12  # of the largest score: nearer than this counts as equal


@dataclass(frozen=True, kw_only=True)
class Greats(Selector):
    """Add, one at a time, the row with the largest f_i . v - c sum_S f_i . f_j; weights 1.

    Wang et al., "GREATS: Online Selection of High-Quality Data for LLM Training in Every Iteration", NeurIPS
    2024. v is the mean gradient of the validation examples. The second term, the learning rate times the
    overlap with the rows taken already, is their second-order term with the identity for the Hessian: what a
    step has done already need not be done again.

    Their c is the learning rate: `learning_rate`. Its size means nothing without the Hessian's: at the authors' own,
    2e-5, and features of order one, the second term is nothing, and the choice is that of `interaction` 0, the M rows
    of largest f_i . v. By default c is `interaction` x mean |f_i . v| / (M x mean |f_i . f_j| over i != j). So with
    1, a row that overlaps with all of the other rows as two rows do on average loses, at the end, what the average
    row gains. Features and validation gradients may then come in any units.

    More than 512 of more than 4,096 rows are taken from blocks in turn, each with as many rows of every alignment; what
    the blocks before have done counts in the next.

    Heavily biased, on purpose: it follows the validation gradient and not the large batch's. Ties go to the
    smaller index.

    Args:
        interaction: as above, at least 0. 0 takes the M rows that are best aligned with the validation gradient.
        learning_rate: c itself, in units of the features and of the validation gradients as they are given; above 0.
            None: by `interaction`.

    Raises:
        ConfigError: an option is out of range, or both are given.
    """

    interaction: float = 1.0
    learning_rate: float | None = None

    name: ClassVar[str] = "greats"
    requires: ClassVar[frozenset[str]] = frozenset({"features", "validation"})

    def __post_init__(self) -> None:
        check_number("interaction", self.interaction, low=0.0)
        if self.learning_rate is not None:
            check_number("learning_rate", self.learning_rate, low=1e-30)
            if self.interaction != 1.0:
                raise ConfigError(
                    f"Options `learning_rate` and `interaction` are two ways to say one number. Found "
                    f"{self.learning_rate!r} and {self.interaction!r}."
                )

    def _choose(self, problem: Problem) -> Choice:
        features, budget = problem.features, problem.budget
        assert problem.validation is not None  # required, so the base has seen to it
        score_N = (features @ problem.validation.mean(dim=0)).cpu()
        if self.learning_rate is None:
            coefficient = self._coefficient(score_N, features, budget)
        else:
            coefficient = self.learning_rate * problem.units
        tolerance = _TOLERANCE * float(score_N.abs().max())
        done_P = torch.zeros_like(features[0])  # the sum of the rows that the blocks before took
        found, gains = [], []
        for inside, count in blocks.for_greedy(features, budget, score_N):
            part = some(features, inside)
            left_N = score_N[inside] - coefficient * (part @ done_P).cpu()
            rows, gained = best_aligned(part, count, left_N, coefficient, tolerance)
            found.append(inside[rows])
            gains.append(gained)
            done_P = done_P + part[rows.to(part.device)].sum(dim=0)
        return Choice(rows=torch.cat(found), gains=torch.cat(gains))

    def _coefficient(self, score_N: Tensor, features_NP: Tensor, budget: int) -> float:
        """c, from all pairs of rows, or of a cross-section of the rows where there are too many."""
        some_rows = some(features_NP, blocks.dealt(features_NP, score_N)[0])
        overlap_NN = gram(some_rows)
        count = len(overlap_NN)
        between = float(overlap_NN.abs().sum() - overlap_NN.diagonal().sum()) / (count * (count - 1))
        # Rows that overlap only by rounding do not overlap.
        if between <= _TOLERANCE * float(overlap_NN.diagonal().mean()):
            return 0.0
        return self.interaction * float(score_N.abs().mean()) / (budget * between)


def best_aligned(
    features_NP: Tensor, budget: int, score_N: Tensor, coefficient: float, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Rows of largest score, each of which lowers the scores of those that overlap with it.

    Returns:
        LongTensor [M], rows as chosen; float64 [M], their scores then.
    """
    products = row_products(features_NP)
    left_N = score_N.clone()
    rows = torch.zeros(budget, dtype=torch.long)
    gains = torch.zeros(budget, dtype=torch.float64)
    for step in range(budget):
        best = left_N.max()
        row = int((left_N >= best - tolerance).int().argmax())
        rows[step], gains[step] = row, left_N[row]
        left_N -= coefficient * products(row)
        left_N[rows[: step + 1]] = -torch.inf
    return rows, gains
