"""Coverage-centric coreset selection: every degree of difficulty, but the hardest, gets the same budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from corebatch.errors import InputError
from corebatch.selectors.checks import check_number
from corebatch.selectors.kernels.inclusion import random_order
from corebatch.subset.base import Follows, Subset, SubsetMethod, SubsetProblem

_TOP = 1.0001
"""The last stratum ends so far beyond the highest score, as in the official code, so that it holds that row."""


@dataclass(frozen=True, kw_only=True)
class CCS(SubsetMethod):
    """Drop the hardest share of the rows, cut the rest into strata of equal width of difficulty, and draw as many of
    each, uniformly (Zheng et al., ICLR 2023, arXiv 2210.15809, algorithm 1); what a small stratum leaves is shared by
    the larger ones, from the smallest up. Weights are ones.

    It optimises no mean: rare degrees of difficulty are kept more often, so it is biased on purpose; at pruning of 70
    to 90 % it beats the hardest rows and random ones there, where hard rows alone leave the dense regions uncovered.

    Given the same scores and random numbers it keeps the rows that the official code keeps, with differences where
    that is undefined: ties in difficulty go by row, those of strata's sizes by stratum, and scores that are all
    negative have a last stratum too (there, the highest row falls out of it). The order of rows in a stratum is that
    of falling difficulty, as there.

    Args:
        hardest: beta, the share of all rows that is dropped, in [0, 1). None: a third of the share that is not kept,
            which is the 0.3 of the official example that keeps 0.1; the paper tunes it for each data set and share.
        strata: of the scores that are left; 50 as in the official code.

    Raises:
        ConfigError: an option is out of range.
        InputError: fewer rows than strata are left, or fewer than are to be kept.
    """

    hardest: float | None = None
    strata: int = 50

    name: ClassVar[str] = "ccs"
    follows: ClassVar[Follows] = "difficulty"

    def __post_init__(self) -> None:
        if self.hardest is not None:
            check_number("hardest", self.hardest, low=0, high=1)
        check_number("strata", self.strata, low=1, whole=True)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"scores"})

    def _choose(self, problem: SubsetProblem) -> Subset:
        assert problem.scores is not None
        count, budget = problem.count, problem.budget
        dropped = (count - budget) // 3 if self.hardest is None else int(self.hardest * count)
        if count - dropped < max(budget, self.strata):
            raise InputError(
                f"ccs: {count} rows without the hardest {dropped} should be at least the {budget} to be kept and the "
                f"{self.strata} strata. Found {count - dropped}: give a smaller `hardest`, or fewer `strata`."
            )
        order = problem.scores.argsort(descending=True, stable=True)[dropped:]
        stratum = strata_of(problem.scores[order], self.strata)
        sizes = torch.bincount(stratum, minlength=self.strata)
        budgets = shared(sizes.tolist(), budget)
        kept = []
        for number, share in enumerate(budgets):
            members = order[stratum == number]
            kept.append(members[random_order(problem.generator, len(members))[:share]])
        told = {"dropped_as_hardest": dropped, "rows_of_strata": sizes.tolist(), "kept_of_strata": budgets}
        return Subset(rows=torch.cat(kept), told=told)


def strata_of(scores_N: Tensor, strata: int) -> Tensor:
    """The stratum of each score, of so many of equal width, from the lowest: LongTensor [N]."""
    least, most = scores_N.min(), scores_N.max()
    step = ((most * _TOP if float(most) > 0 else most) - least) / strata
    edges = least + torch.arange(1, strata) * step
    return torch.bucketize(scores_N, edges, right=True)


def shared(sizes: list[int], budget: int) -> list[int]:
    """The same budget for all, but no more than there is: what small ones leave goes to the larger, as equally."""
    budgets, left = [0] * len(sizes), budget
    for place, index in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        budgets[index] = min(sizes[index], left // (len(sizes) - place))
        left -= budgets[index]
    return budgets
