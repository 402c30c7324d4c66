"""The hardest, the easiest, or the rows between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from corebatch.selectors.checks import check_choice, check_flag
from corebatch.sources import split
from corebatch.subset.base import Follows, Subset, SubsetMethod, SubsetProblem


@dataclass(frozen=True, kw_only=True)
class Difficulty(SubsetMethod):
    """Keep a part of the order by a score, with weights of one; ties go by row. Follows no mean: biased on purpose.

    Hard rows are what EL2N and forgetting keep (Paul et al. 2021, arXiv 2107.07075; Toneva et al. 2019, arXiv
    1812.05159), where data are plenty and clean; easy ones are better where data are few (Sorscher et al. 2022, arXiv
    2206.14486) or dirty; the middle is best for pretraining by perplexity (Marion et al. 2023, arXiv 2309.04564). By
    an excess loss the hard part is what a reference has learnt and this model not (RHO-LOSS: Mindermann et al. 2022,
    arXiv 2206.07137), of which there is nothing in rows that are wrong.

    Args:
        part: "hard" (highest scores), "easy" (lowest) or "middle" (as many dropped of either end).
        by_source: each source keeps the same share of its rows; otherwise sources that are hard may be all that is
            left.
    """

    part: Literal["hard", "easy", "middle"] = "hard"
    by_source: bool = False

    name: ClassVar[str] = "difficulty"
    follows: ClassVar[Follows] = "difficulty"

    def __post_init__(self) -> None:
        check_choice("part", self.part, ("hard", "easy", "middle"))
        check_flag("by_source", self.by_source)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"scores"})

    def _choose(self, problem: SubsetProblem) -> Subset:
        assert problem.scores is not None
        groups = split(problem.sources, problem.budget, per_source=self.by_source, generator=problem.generator)
        kept = torch.cat([g.members[self._part(problem.scores[g.members], g.budget)] for g in groups])
        scores = problem.scores[kept]
        return Subset(rows=kept, told={"lowest_score": float(scores.min()), "highest_score": float(scores.max())})

    def _part(self, scores_N: Tensor, budget: int) -> Tensor:
        order = scores_N.argsort(descending=self.part != "easy", stable=True)
        start = (len(order) - budget) // 2 if self.part == "middle" else 0
        return order[start : start + budget]
