"""The cube method: an unbiased sample of exact size that meets the mean in its main directions.

Shape suffixes: N rows of the large batch, M rows of the small batch, P feature columns, Q balancing variables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from corebatch.selectors.base import Problem
from corebatch.selectors.checks import check_number
from corebatch.selectors.kernels.distances import gram
from corebatch.selectors.kernels.flight import fly
from corebatch.selectors.kernels.inclusion import DEFAULT_FLOOR, random_order, uniforms
from corebatch.selectors.sampler import Sampler

DIMENSIONS = 32
"""How many totals are kept beside the size."""
_SPARE = 8  # directions that are computed beside those wanted, so that those wanted are right
_FEW = 10  # rows for each column of the iteration, up to which the inner products of all rows are computed
_NOTHING = 1e-10  # of the largest variance: a direction with less is rounding noise


@dataclass(frozen=True, kw_only=True)
class Cube(Sampler):
    """Draw M rows with given probabilities so that weighted sums along the main directions are nearly exact.

    Deville, Tille, "Efficient balanced sampling: the cube method", Biometrika 91, 2004, in the fast form of
    Chauvet, Tille 2006. The vector of inclusion probabilities walks inside the cube [0, 1]^N, along directions
    that keep every total and with expected change zero, until it stands on a corner. So each row is taken with
    exactly its probability, and the size, the first total, is exact. The other totals are those of
    f_i / (N pi_i) along the directions of largest sampling variance. When fewer rows than totals are left,
    the totals of least variance are given up first.

    Args:
        floor: as in `importance`.
        dimensions: how many totals are kept beside the size, at least 1. More is nearer to the mean, even above M;
            the time goes with N x dimensions^3.
        calibrate, cost_power: as in `importance`.

    Raises:
        ConfigError: an option is out of range.
    """

    floor: float = DEFAULT_FLOOR
    dimensions: int = DIMENSIONS
    calibrate: bool | float = False
    cost_power: float | None = None

    name: ClassVar[str] = "cube"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("dimensions", self.dimensions, low=1, whole=True)

    def _draw(self, problem: Problem, inclusion_N: Tensor) -> Tensor:
        return draw_cube(problem, inclusion_N, self.dimensions)


def draw_cube(problem: Problem, inclusion_N: Tensor, dimensions: int) -> Tensor:
    """A sample by the cube method, which keeps so many totals beside the size: LongTensor [M]."""
    generator, count = problem.generator, len(inclusion_N)
    variables_NQ = balancing_variables(problem.features, inclusion_N, dimensions, generator)
    order = random_order(generator, count)
    uniforms_N = uniforms(generator, count)
    taken_N = fly(variables_NQ[order].numpy(), inclusion_N[order].numpy(), uniforms_N.numpy(), problem.budget)
    return order[torch.from_numpy(np.flatnonzero(taken_N))]


def balancing_variables(
    features_NP: Tensor, inclusion_N: Tensor, dimensions: int, generator: torch.Generator
) -> Tensor:
    """A column of ones, and the rows f_i / pi_i along the directions in which a sample varies most.

    Rows drawn one by one would have the covariance sum_i pi_i (1 - pi_i) (f_i / pi_i)(f_i / pi_i)^T. Its leading
    eigenvectors come from products with a few dozen columns, by random subspace iteration (Halko, Martinsson, Tropp
    2011, arXiv 0909.4061, algorithm 4.4): neither all eigenvectors nor, for many rows, their inner products are needed.

    Returns:
        float64 [N, Q] with Q <= 1 + dimensions, by falling variance; the largest entry of each column is 1. Rows
        that are certain have zeros beside the one: they vary in no sample, and their size must not hide the others.
    """
    count = len(inclusion_N)
    ones_N1 = torch.ones(count, 1, dtype=torch.float64)
    open_N1 = (inclusion_N < 1.0).double()[:, None]
    scale_N1 = ((1.0 - inclusion_N).clamp_(min=0.0) / inclusion_N).sqrt_()[:, None]  # sqrt(pi (1 - pi)) / pi
    basis_NQ = uniforms(generator, count, min(count, dimensions + _SPARE)) - 0.5
    multiply = inner_products(features_NP, columns=basis_NQ.shape[1])
    for _ in range(3):
        basis_NQ = torch.linalg.qr(scale_N1 * multiply(scale_N1 * basis_NQ)).Q
    variances_Q, turn_QQ = torch.linalg.eigh(basis_NQ.T @ (scale_N1 * multiply(scale_N1 * basis_NQ)))
    wanted = (variances_Q > _NOTHING * variances_Q[-1].clamp(min=0.0)).nonzero().flatten().flip(0)[:dimensions]
    if not bool(variances_Q[-1] > 0):
        return ones_N1
    along_NQ = open_N1 / inclusion_N[:, None] * multiply(scale_N1 * (basis_NQ @ turn_QQ[:, wanted]))
    return torch.cat([ones_N1, along_NQ / along_NQ.abs().amax(dim=0)], dim=1)


def inner_products(features_NP: Tensor, columns: int) -> Callable[[Tensor], Tensor]:
    """A function that multiplies [N, Q] by the inner products F F^T, on the CPU; Q is about `columns`.

    Five such products take less by way of F^T than the matrix takes to make, if there are ten times as many rows.
    """
    if len(features_NP) <= _FEW * columns:
        gram_NN = gram(features_NP)
        return lambda matrix_NQ: gram_NN @ matrix_NQ
    return lambda matrix_NQ: (features_NP @ (features_NP.T @ matrix_NQ.to(features_NP.device))).cpu()
