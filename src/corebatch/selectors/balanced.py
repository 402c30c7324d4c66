"""Balanced sampling by swaps: the weighted sum of the chosen rows meets the large batch's mean.

Shape suffixes: N rows of the large batch, M rows of the small batch, P feature columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from corebatch.selectors.base import Problem
from corebatch.selectors.checks import check_choice, check_number
from corebatch.selectors.cube import DIMENSIONS, draw_cube
from corebatch.selectors.kernels import blocks
from corebatch.selectors.kernels.distances import gram, mean_norm, some
from corebatch.selectors.kernels.inclusion import DEFAULT_FLOOR, systematic_sample
from corebatch.selectors.kernels.swaps import swap
from corebatch.selectors.sampler import Sampler

_STOP = 1e-12  # of the mean square of what is summed: below this a swap is rounding noise


@dataclass(frozen=True, kw_only=True)
class Balanced(Sampler):
    """Start from an unbiased sample, then swap rows while that brings the estimate nearer to the mean.

    Minimises ||sum_S f_i / (N pi_i) - mean f||^2 over the rows S, steepest swap first, with weights that stay
    M / (N pi_i). Balanced sampling after Deville, Tille 2004, by exchange instead of the cube method: nearer
    to the mean in one step, and biased, since the swaps change the probabilities and the weights do not know: rows
    whose direction nothing else balances are taken too seldom or never, the more so the smaller the pool
    (docs/methods/selectors.md). Rows with pi = 1 stay in, as they would be missed in every draw otherwise.

    Above 4,096 rows swaps stay within blocks, each a cross-section of all rows that also makes up for the blocks
    before it.

    A constant column, the mean norm of the rows that are not certain, is added to the features, so that the weights
    keep averaging about 1; with that scale an error of the mean weight counts as much as one along a typical row.

    Args:
        floor: as in `importance`.
        max_swaps: stop after so many swaps; None is as many as the budget, which is rarely reached.
        start: the sample that swaps begin with: "systematic", the importance sample, or "cube", which is near to the
            mean already, so that fewer swaps change the probabilities less. "auto": "cube" where earlier errors are
            carried, else "systematic".
        calibrate, cost_power: as in `importance`.

    Raises:
        ConfigError: an option is out of range.
    """

    floor: float = DEFAULT_FLOOR
    max_swaps: int | None = None
    calibrate: bool | float = False
    start: Literal["auto", "systematic", "cube"] = "auto"
    cost_power: float | None = None

    name: ClassVar[str] = "balanced"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("start", self.start, ("auto", "systematic", "cube"))
        if self.max_swaps is not None:
            check_number("max_swaps", self.max_swaps, low=0, whole=True)

    def _draw(self, problem: Problem, inclusion_N: Tensor) -> Tensor:
        if self.start == "cube" or (self.start == "auto" and problem.carried is not None):
            start = draw_cube(problem, inclusion_N, DIMENSIONS)
        else:
            start = systematic_sample(inclusion_N, problem.budget, problem.generator)
        max_swaps = problem.budget if self.max_swaps is None else self.max_swaps
        return balance(problem.features, inclusion_N, start, max_swaps, problem.carried)

    @property
    def follows(self) -> bool:
        # Calibration moves the weights towards this pool's mean alone, and would undo it.
        return self.calibrate is False


def balance(
    features_NP: Tensor, inclusion_N: Tensor, start_M: Tensor, max_swaps: int, carried_N: Tensor | None = None
) -> Tensor:
    """Improve a sample by swaps.

    Minimises ||sum_S z_i - sum_N pi_i z_i + N e|| for z_i = (f_i, c) / pi_i, with c the mean norm of the rows that are
    not certain, and e the sum of earlier errors, or nothing. Above 4,096 rows block by block: rows are swapped within a
    block, which makes up for what the blocks before it are off by.

    Args:
        features_NP: float64.
        inclusion_N: float64 [N].
        start_M: LongTensor [M], the rows to start from.
        max_swaps: stop after so many; each block has its share.
        carried_N: float64 [N], (f_i, c) . e; None: zeros.

    Returns:
        LongTensor [M].
    """
    open_N = (inclusion_N < 1.0).nonzero().flatten()  # rows that are certain say nothing of the size of what is swapped
    constant = mean_norm(some(features_NP, open_N)) if len(open_N) else 1.0
    parts = blocks.dealt(features_NP)
    return balance_blocks(partial(some, features_NP), parts, inclusion_N, start_M, constant, max_swaps, carried_N)


def balance_blocks(
    read: Callable[[Tensor], Tensor],
    parts: list[Tensor],
    inclusion_N: Tensor,
    start_M: Tensor,
    constant: float,
    max_swaps: int,
    carried_N: Tensor | None = None,
) -> Tensor:
    """`balance` for rows that are read block by block.

    Args:
        read: rows (LongTensor, ascending) -> their features, float64.
        parts: the blocks, together all rows.
        constant: c.
        inclusion_N, start_M, max_swaps, carried_N: as there.

    Returns:
        As there.
    """
    chosen_N = torch.zeros(len(inclusion_N), dtype=torch.bool)
    chosen_N[start_M] = True
    off_P, off = None, 0.0  # sum_S f_i / pi_i - sum f_i so far; and of c
    found: list[Tensor] = []
    for inside, swaps in blocks.with_shares(parts, max_swaps):
        part, inclusion_B = read(inside), inclusion_N[inside]
        off_P = part.new_zeros(part.shape[1]) if off_P is None else off_P
        expanded_BB = gram(part).add_(constant**2).div_(inclusion_B[:, None]).div_(inclusion_B)
        missing_B = (part @ off_P).cpu() + constant * off
        if carried_N is not None:
            missing_B += len(inclusion_N) * carried_N[inside]
        carried_B = missing_B / inclusion_B
        taken = swapped(expanded_BB, inclusion_B, chosen_N[inside], carried_B, swaps)
        found.append(inside[taken])
        extra_B = -torch.ones(len(inside), dtype=torch.float64)
        extra_B[taken] += 1.0 / inclusion_B[taken]
        off_P, off = off_P + part.T @ extra_B.to(part.device), off + constant * float(extra_B.sum())
    return torch.cat(found)


def swapped(expanded_NN: Tensor, inclusion_N: Tensor, chosen_N: Tensor, carried_N: Tensor, max_swaps: int) -> Tensor:
    """Swap rows of one block.

    Args:
        expanded_NN: inner products z_i . z_j.
        inclusion_N: float64 [N].
        chosen_N: BoolTensor [N], the rows to start from.
        carried_N: z_i . e, where e is what the sum is off by without these rows.
        max_swaps: stop after so many.

    Returns:
        LongTensor, the rows taken, ascending and as many as before.
    """
    slope_N = expanded_NN @ (chosen_N.double() - inclusion_N) + carried_N
    fixed_N = inclusion_N == 1.0
    scale = float((inclusion_N * ~fixed_N) @ expanded_NN.diagonal())
    taken_N = swap(expanded_NN.numpy(), slope_N.numpy(), chosen_N.numpy(), fixed_N.numpy(), max_swaps, _STOP * scale)
    return torch.from_numpy(np.flatnonzero(taken_N))
