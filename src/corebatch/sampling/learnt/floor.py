"""A floor: rows whose loss is below it stay away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from corebatch.sampling.learnt.base import Known, LearntRows, PassRows
from corebatch.sampling.learnt.tail import without


@dataclass(frozen=True, kw_only=True)
class Floor(LearntRows):
    """Rows whose mean token loss was below a floor are left out, but for a few that are looked at again.

    The plainest way to skip what is learnt. Biased: what is below the floor counts nothing, but for those few.

    Args:
        below: the floor, in nats per token: 0.05 is a probability of 0.95 for every token.
        again: the share of these rows that comes all the same, so that what is forgotten is seen.
        whole: as in `LearntRows`.
    """

    below: float = 0.05
    again: float = 0.1

    name: ClassVar[str] = "floor"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("below", self.below, 0, 1000)
        self.check("again", self.again, 0, 1)

    def _keep(self, known: Known, number: int, random: np.random.RandomState) -> PassRows:
        return without(known.losses < self.below, self.again, random)
