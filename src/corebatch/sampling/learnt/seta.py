"""SeTa: a window over groups of like loss that slides from easy rows to hard ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from corebatch.errors import ConfigError
from corebatch.options import check_count
from corebatch.sampling.learnt.base import WHAT, Known, LearntRows, PassRows, some_of

_ROUNDS = 300  # of k-means, at most, as scikit-learn has it


@dataclass(frozen=True, kw_only=True)
class SeTa(LearntRows):
    """A share of the rows is left out at random, the others fall into groups by loss, and a window of these comes.

    Zhou et al., "Scale Efficient Training for Large Datasets", CVPR 2025; the official code's `prune`. The first pass
    has all groups, and in pass k the window begins at group k mod (groups - window + 1), from the lowest loss up. In
    the last passes all groups come, after the random share. Biased: rows outside the window count nothing, in many
    passes in a row where they are the easiest or the hardest.

    Differences: groups are found by k-means in one dimension from quantiles, without a seed; a row that was never
    trained comes whatever the window is (there it has a loss of 3).

    Args:
        prune: the share that is left out at random.
        groups: how many; window: the share of them that comes.
        whole: as in `LearntRows`.
    """

    prune: float = 0.1
    groups: int = 10
    window: float = 0.5

    name: ClassVar[str] = "seta"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("prune", self.prune, 0, 0.9)
        self.check("window", self.window, 0, 1, above=True)
        check_count(f"{WHAT}.groups of {self.name}", self.groups)
        if not round(self.groups * self.window):
            raise ConfigError(f"{WHAT}.window of seta should hold a group. Found {self.window:g} of {self.groups}.")

    def _keep(self, known: Known, number: int, random: np.random.RandomState) -> PassRows:
        count = len(known.losses)
        drawn = some_of(torch.arange(count), int(count * (1 - self.prune)), random)
        losses = known.losses[drawn]
        unknown, seen = drawn[losses.isnan()], drawn[~losses.isnan()]
        if number == 0 or len(seen) <= self.groups:
            return PassRows(drawn)
        group = groups_by_loss(known.losses[seen], self.groups)
        size = round(self.groups * self.window)
        first = number % (self.groups - size + 1)
        return PassRows(torch.cat([unknown, seen[(group >= first) & (group < first + size)]]))


def groups_by_loss(losses: Tensor, groups: int) -> Tensor:
    """LongTensor [N], from 0 for the lowest losses: k-means in one dimension (Lloyd), from the middles of equal parts.

    Args:
        losses: float64 [N], finite.
    """
    if float(losses.max()) == float(losses.min()):
        return torch.arange(len(losses)) * groups // len(losses)
    ordered, order = losses.sort(stable=True)
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    centers = ordered[((torch.arange(groups) + 0.5) / groups * len(ordered)).long()]
    ends = torch.zeros(0, dtype=torch.long)
    for _ in range(_ROUNDS):
        found = torch.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2)
        if torch.equal(found, ends):
            break
        ends = found
        edges = torch.cat([torch.tensor([0]), ends, torch.tensor([len(ordered)])])
        sizes = edges.diff()
        means = (sums[edges[1:]] - sums[edges[:-1]]) / sizes.clamp(min=1)
        centers = torch.where(sizes > 0, means, centers).sort().values
    group = torch.empty(len(losses), dtype=torch.long)
    group[order] = torch.searchsorted(ends, torch.arange(len(losses)), right=True)
    return group
