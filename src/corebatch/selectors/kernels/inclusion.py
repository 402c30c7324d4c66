"""Inclusion probabilities, and samples that have them exactly.

Shape suffixes: N rows of the large batch, M rows of the small batch, P feature columns.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from corebatch.selectors.checks import check_number

# A row this near to certain is made certain, so that rounding never puts two points of a systematic sample
# into one row.
_CERTAIN = 1.0 - 1e-10
_ROUNDS = 100  # in which the mean norm settles: few, but where the budget is hardly more than the rows that are certain

DEFAULT_FLOOR = 0.1
LOWEST_FLOOR = 1e-3


def check_floor(floor: object) -> None:
    """Raise ConfigError unless the floor is a number in [0.001, 1].

    With no floor a row of zeros could never be drawn, and nearly empty rows would get enormous weights.
    """
    check_number("floor", floor, low=LOWEST_FLOOR, high=1.0)


def inclusion_probabilities(features_NP: Tensor, budget: int, floor: float) -> Tensor:
    """Probabilities in proportion to the rows' Euclidean norms, at most 1, that sum to the budget.

    The variance of a weighted mean is smallest when inclusion is in proportion to the size of what is summed
    (Horvitz, Thompson 1952; for gradients Katharopoulos, Fleuret 2018, arXiv 1803.00942, equation 8).

    Norms below `floor` times the mean norm are raised to it. Norms count in that mean as far as they make a row
    certain, so that one row of enormous norm does not make all others equally likely. A weight M / (N pi) is then at
    most (1 + floor) / floor: 11 for the default 0.1. The features are only a stand-in for what is trained, so a row
    that they call unimportant must not get a weight without bound; raising the floor costs little variance, since the
    rows that it touches are small.

    Args:
        features_NP: float64 [N, P].
        budget: M, with 0 < M < N.
        floor: as above.

    Returns:
        float64 [N] on the CPU, in (0, 1].
    """
    sizes_N = torch.linalg.vector_norm(features_NP, dim=1).cpu()
    mean = float(sizes_N.mean())
    if mean == 0.0:
        return _in_proportion(torch.ones_like(sizes_N), budget)[0]
    for _ in range(_ROUNDS):
        result_N, certain = _in_proportion(sizes_N.clamp(min=floor * mean), budget)
        # From above, and the bound holds for every mean on the way.
        lower = float(sizes_N.clamp(max=certain).mean())
        if lower >= mean * (1.0 - 1e-9) or floor * lower == 0.0:  # towards 0 where rows of zeros have to be drawn
            break
        mean = lower
    return result_N


def _in_proportion(sizes_N: Tensor, budget: int) -> tuple[Tensor, float]:
    """Probabilities in proportion to positive sizes, at most 1, that sum to the budget; and the size that is certain:
    the least with probability 1, infinite if no row has that."""
    sizes, shares_N = sizes_N.numpy(), sizes_N.clone()  # numpy's operations on few numbers take a third of torch's time
    shares, certain, left = shares_N.numpy(), np.zeros(len(sizes_N), dtype=bool), budget
    while True:
        with np.errstate(invalid="ignore"):  # 0 / 0, where all are certain
            result = left * shares / float(shares_N.sum())
        above = result >= _CERTAIN
        if not above.any():
            break
        certain |= above
        shares[above] = 0.0
        left = budget - int(certain.sum())
    result[certain] = 1.0
    least = math.inf
    if certain.any():
        least = float(sizes_N[torch.from_numpy(~certain)].sum()) / left if left else float(sizes[certain].min())
    return torch.from_numpy(result), least


def expansion_weights(inclusion_N: Tensor, rows_M: Tensor) -> Tensor:
    """The weights M / (N pi) of the chosen rows: float64 [M]. Their expected mean is 1."""
    return len(rows_M) / (len(inclusion_N) * inclusion_N[rows_M])


def uniforms(generator: torch.Generator, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1) from the generator, on whichever device it is: float64 on the CPU."""
    # MPS generators draw no float64.
    dtype = torch.float32 if generator.device.type == "mps" else torch.float64
    return torch.rand(*shape, generator=generator, dtype=dtype, device=generator.device).double().cpu()


def random_order(generator: torch.Generator, count: int) -> Tensor:
    """A uniformly random permutation: LongTensor [count] on the CPU."""
    return torch.randperm(count, generator=generator, device=generator.device).cpu()


def systematic_sample(inclusion_N: Tensor, budget: int, generator: torch.Generator) -> Tensor:
    """Draw exactly `budget` rows, row i with probability exactly pi_i.

    Systematic sampling on randomly ordered rows (Goodman, Kish 1950): lay the probabilities end to end and
    take the rows hit by points one apart, the first of them uniform in [0, 1).

    Returns:
        LongTensor [M], ascending.
    """
    certain = torch.nonzero(inclusion_N == 1.0).flatten()
    order = random_order(generator, len(inclusion_N))
    order = order[inclusion_N[order] < 1.0]
    left = budget - len(certain)
    ends = inclusion_N[order].cumsum(0)
    ends[-1] = float(left)  # the sum, without the rounding of adding it up
    points = uniforms(generator, 1) + torch.arange(left, dtype=torch.float64)
    hit = order[torch.searchsorted(ends, points, right=True)]
    return torch.cat([certain, hit]).sort().values
