"""TailSFT: rows that are fit stay away, so that training is about the tail of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from corebatch.sampling.learnt.base import Known, LearntRows, PassRows, some_of


@dataclass(frozen=True, kw_only=True)
class Tail(LearntRows):
    """Rows whose loss is in the lower part, and no longer falls, are left out, but for a few that are looked at again.

    After "TailSFT: Filtered Fine-Tuning Improves Post-Training Performance" (arXiv 2608.25756), which filters sequences
    that are already fit out of supervised fine-tuning, for higher coverage and not for speed. Biased on purpose: what
    is fit counts nothing.

    Differences: only the paper's abstract could be had, so what counts as fit is ours: a row that is above the quantile
    comes even if its loss stands still, since it is not fit but hard.

    Args:
        fall: a row is fit if its loss has not fallen by more than this share between its last two visits.
        quantile: rows above this quantile of the losses are never taken for fit.
        again: the share of the fit rows that comes all the same, so that what is forgotten is seen.
        whole: as in `LearntRows`.
    """

    fall: float = 0.02
    quantile: float = 0.5
    again: float = 0.1

    name: ClassVar[str] = "tail"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("fall", "quantile", "again"):
            self.check(key, getattr(self, key), 0, 1)

    def _keep(self, known: Known, number: int, random: np.random.RandomState) -> PassRows:
        stands = known.losses >= (1 - self.fall) * known.before  # false where either is not known
        if not bool(stands.any()):
            return PassRows(torch.arange(len(stands)))
        fit = stands & (known.losses <= known.losses.nanquantile(self.quantile))
        return without(fit, self.again, random)


def without(learnt: torch.Tensor, again: float, random: np.random.RandomState) -> PassRows:
    """All rows but those that are learnt (BoolTensor [N]), of which the share `again` comes."""
    rows = learnt.nonzero().flatten()
    return PassRows(torch.cat([(~learnt).nonzero().flatten(), some_of(rows, round(again * len(rows)), random)]))
