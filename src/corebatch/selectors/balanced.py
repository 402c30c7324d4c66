"""Balanced sampling by swaps: the weighted sum of the chosen rows meets the large batch's mean.

Shape suffixes: N rows of the large batch, M rows of the small batch, P feature columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from corebatch.selectors._calibration import calibrated_weights, check_calibrate, expand
from corebatch.selectors._checks import check_number
from corebatch.selectors._distances import gram
from corebatch.selectors._inclusion import (
    DEFAULT_FLOOR,
    check_floor,
    expansion_weights,
    inclusion_probabilities,
    systematic_sample,
)
from corebatch.selectors._swaps import swap
from corebatch.selectors.base import Choice, Selector

_STOP = 1e-12  # of the mean square of what is summed: below this a swap is rounding noise


@dataclass(frozen=True, kw_only=True)
class Balanced(Selector):
    """Start from the importance sample, then swap rows while that brings the estimate nearer to the mean.

    Minimises ||sum_S f_i / (N pi_i) - mean f||^2 over the rows S, steepest swap first, with weights that stay
    M / (N pi_i). Balanced sampling after Deville, Tille 2004, by exchange instead of the cube method: nearer
    to the mean in one step, and biased, since the swaps change the probabilities and the weights do not know: rows
    whose direction nothing else balances are taken too seldom or never, the more so the smaller the pool
    (docs/selectors.md). Rows with pi = 1 stay in, as they would be missed in every draw otherwise.

    A constant column, the mean norm, is added to the features, so that the weights keep averaging about 1;
    with that scale an error of the mean weight counts as much as one along a typical row.

    Args:
        floor: as in `importance`.
        max_swaps: stop after so many swaps; None is as many as the budget, which is rarely reached.
        calibrate: move the weights towards meeting the mean, as `calibrated` does: True, or a ridge in place of its
            default. Nearer in one step, and no longer unbiased.

    Raises:
        ConfigError: an option is out of range.
    """

    floor: float = DEFAULT_FLOOR
    max_swaps: int | None = None
    calibrate: bool | float = False

    name: ClassVar[str] = "balanced"
    requires: ClassVar[frozenset[str]] = frozenset({"features"})
    weighted = True

    def __post_init__(self) -> None:
        check_floor(self.floor)
        check_calibrate(self.calibrate)
        if self.max_swaps is not None:
            check_number("max_swaps", self.max_swaps, low=0, whole=True)

    def _choose(
        self,
        features: Tensor,
        budget: int,
        generator: torch.Generator,
        *,
        losses: Tensor | None,
        validation: Tensor | None,
    ) -> Choice:
        inclusion_N = inclusion_probabilities(features, budget, self.floor)
        start = systematic_sample(inclusion_N, budget, generator)
        expanded_NN, constant = expand(gram(features), inclusion_N)
        max_swaps = budget if self.max_swaps is None else self.max_swaps
        rows = balance(expanded_NN, inclusion_N, start, max_swaps)
        if self.calibrate:
            weights = calibrated_weights(expanded_NN, constant, inclusion_N, rows, self.calibrate)
        else:
            weights = expansion_weights(inclusion_N, rows)
        return Choice(rows=rows, weights=weights)


def balance(expanded_NN: Tensor, inclusion_N: Tensor, start_M: Tensor, max_swaps: int) -> Tensor:
    """Improve a sample by swaps.

    Args:
        expanded_NN: inner products of the rows to be summed, as `expand` gives them.
        inclusion_N: float64 [N].
        start_M: LongTensor [M], the rows to start from.
        max_swaps: stop after so many.

    Returns:
        LongTensor [M], ascending.
    """
    chosen_N = torch.zeros(len(inclusion_N), dtype=torch.bool)
    chosen_N[start_M] = True
    slope_N = expanded_NN @ (chosen_N.double() - inclusion_N)
    scale = float(inclusion_N @ expanded_NN.diagonal())
    fixed_N = inclusion_N == 1.0
    taken_N = swap(expanded_NN.numpy(), slope_N.numpy(), chosen_N.numpy(), fixed_N.numpy(), max_swaps, _STOP * scale)
    return torch.from_numpy(np.flatnonzero(taken_N))
