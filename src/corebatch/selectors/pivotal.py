"""The local pivotal method: an unbiased sample that is spread over feature space.

Shape suffixes: N rows of the large batch, M rows of the small batch, P feature columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from corebatch.selectors.base import Problem
from corebatch.selectors.kernels import blocks
from corebatch.selectors.kernels.distances import gram, some
from corebatch.selectors.kernels.inclusion import DEFAULT_FLOOR, uniforms
from corebatch.selectors.kernels.settle import decide, settle
from corebatch.selectors.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class Pivotal(Sampler):
    """Near neighbours settle their probabilities against each other until all are 0 or 1; unbiased.

    Grafstroem, Lundstroem, Schelin, "Spatially balanced sampling through the pivotal method", Biometrics 68,
    2012, method LPM2. A random undecided row meets its nearest undecided neighbour and one of the two is
    decided. LPM1 asks for mutual neighbours, spreads a little better, and needs several searches a meeting:
    LPM2 takes one, so the whole is O(N^2) after the distances. Inclusion probabilities are met exactly
    either way. Above 4,096 rows neighbours meet within blocks of near rows, and then what the blocks leave undecided:
    as unbiased, of the same size, a little less spread.

    Neighbours are near among the weighted rows f_i / (N pi_i), the terms of the sum that is estimated.

    Args:
        floor: as in `importance`.
        calibrate, cost_power: as in `importance`.

    Raises:
        ConfigError: an option is out of range.
    """

    floor: float = DEFAULT_FLOOR
    calibrate: bool | float = False
    cost_power: float | None = None

    name: ClassVar[str] = "pivotal"

    def _draw(self, problem: Problem, inclusion_N: Tensor) -> Tensor:
        features, generator = problem.features, problem.generator

        def meet(rows: Tensor, chance: Tensor) -> Tensor:
            squared = expanded_distances(gram(some(features, rows)), inclusion_N[rows])
            return torch.from_numpy(settle(squared.numpy(), chance.numpy(), uniforms(generator, len(rows), 2).numpy()))

        return decide(problem, inclusion_N, meet, blocks.BLOCK)


def expanded_distances(gram_NN: Tensor, inclusion_N: Tensor) -> Tensor:
    """Squared Euclidean distances between the rows f_i / pi_i, from inner products of f_i: float64 [N, N]."""
    result_NN = (gram_NN / inclusion_N[:, None]).div_(inclusion_N)
    squares_N = result_NN.diagonal().clone()
    sums_NN = squares_N[:, None] + squares_N
    result_NN.mul_(-2.0).add_(sums_NN)
    # Duplicates are at distance 0, not at what cancellation leaves: else noise would pick the neighbour.
    return result_NN.masked_fill_(result_NN < 1e-12 * sums_NN, 0.0)
