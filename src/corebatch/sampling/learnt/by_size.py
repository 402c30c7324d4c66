"""Rows come in proportion to the gradient that they had, with weights that undo it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from corebatch.sampling.learnt.base import Known, LearntRows, PassRows
from corebatch.selectors.kernels.inclusion import DEFAULT_FLOOR, check_floor, inclusion_probabilities, systematic_sample


@dataclass(frozen=True, kw_only=True)
class BySize(LearntRows):
    """A fixed share of the rows comes, row i with pi_i in proportion to u_i |g_i| / l_i^p, and counts 1 / pi_i.

    The estimator of a step's selection (`importance`; Horvitz and Thompson 1952, for gradients Katharopoulos and
    Fleuret 2018, arXiv 1803.00942) over an epoch: with a selection behind it, whose inclusion is in proportion to
    u_i |g_i| / pi_i, both together have the row's weight 1 / (pi of the epoch x pi of the step). Unbiased whatever the
    sizes are, but for what a ratio leaves: a step divides by the sum of its rows' parts, with the same weights. |g_i|
    is taken from the losses of the forward that trained the row: sqrt(sum_t (1 - p_t)^2) is the length of the gradient
    in the logits up to a factor between 1 and the root of 2, if tokens add up as if orthogonal.

    Args:
        keep_share: the share of the rows that were trained before which comes, in (0, 1]; the others all come.
        cost_power: p, between 0 and 1; l_i are the row's tokens, what it costs. Where sizes were known exactly, 0.5
            would have the least variance at a given cost (Neyman 1934).
        floor: sizes below this share of the mean size are raised to it, as in `importance`: a weight is at most
            (1 + floor) / floor over `keep_share`.
        whole: as in `LearntRows`.
    """

    keep_share: float = 0.5
    cost_power: float = 0.25
    floor: float = DEFAULT_FLOOR

    name: ClassVar[str] = "by_size"
    unbiased: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("keep_share", self.keep_share, 0, 1, above=True)
        self.check("cost_power", self.cost_power, 0, 1)
        check_floor(self.floor)

    def _keep(self, known: Known, number: int, random: np.random.RandomState) -> PassRows:
        unknown = known.sizes.isnan()
        there, seen = unknown.nonzero().flatten(), (~unknown).nonzero().flatten()
        count = round(self.keep_share * len(seen))
        if not 0 < count < len(seen):
            return PassRows(torch.arange(len(unknown)))
        sizes = known.sizes[seen] / known.lengths[seen].clamp(min=1) ** self.cost_power
        inclusion = inclusion_probabilities(sizes[:, None], count, self.floor)
        generator = torch.Generator().manual_seed(int(random.randint(2**31)))
        drawn = systematic_sample(inclusion, count, generator)
        weights = torch.cat([torch.ones(len(there), dtype=torch.float64), 1 / inclusion[drawn]])
        return PassRows(torch.cat([there, seen[drawn]]), weights)
