"""InfoBatch: rows below the mean loss come with a probability, and then count for those that do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from corebatch.sampling.learnt.base import Known, LearntRows, PassRows, some_of


@dataclass(frozen=True, kw_only=True)
class InfoBatch(LearntRows):
    """Of the rows whose loss is below the mean a share is left out at random, and the others of them count the more.

    Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", ICLR 2024 (arXiv 2303.04947),
    equations 3 and 4; the official code's `prune`. Unbiased, but for what is not known of a row that was left out: its
    last loss stands.

    Differences: a row that was never trained is kept (there it has a loss of 3); weights are the rows below the mean
    over those of them that came, where the official 1 / (1 - prune) is off by what rounding the count leaves; and a
    step divides by the sum of its rows' weights, where the official code divides by its rows, which makes the steps of
    a shorter epoch longer in proportion.

    Args:
        prune: r, the share of the rows below the mean that is left out, at most 0.9 as in the official code.
        whole: as in `LearntRows`.
    """

    prune: float = 0.5

    name: ClassVar[str] = "infobatch"
    unbiased: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("prune", self.prune, 0, 0.9)

    def _keep(self, known: Known, number: int, random: np.random.RandomState) -> PassRows:
        learnt = known.losses < known.losses.nanmean()  # false where nothing is known
        below, others = learnt.nonzero().flatten(), (~learnt).nonzero().flatten()
        count = int((1 - self.prune) * len(below))
        if not count:
            return PassRows(torch.arange(len(learnt)))
        weights = torch.ones(count + len(others), dtype=torch.float64)
        weights[len(others) :] = len(below) / count
        return PassRows(torch.cat([others, some_of(below, count, random)]), weights)
