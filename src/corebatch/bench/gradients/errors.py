"""Inner products of the population's exact gradients, and what is said by them alone.

Shape suffixes: P population, D trained parameters, K combinations of gradients, B pools, R repeated draws.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Gram:
    """Squared lengths in one metric. All vectors are combinations of the P gradients, so the P x P Gram matrix (in
    float64) holds every inner product that is needed."""

    def __init__(self, gram_PP: Tensor) -> None:
        self.gram_PP = gram_PP

    @staticmethod
    def of(gradients_PD: Tensor) -> Gram:
        """From the gradients themselves, over slices of D."""
        gram = torch.zeros(len(gradients_PD), len(gradients_PD), dtype=torch.float64, device=gradients_PD.device)
        for part in gradients_PD.split(2**16, dim=1):
            wide = part.double()
            gram += wide @ wide.T
        return Gram(gram.cpu())

    def scaled(self, factors_P: Tensor) -> Gram:
        """Of the same gradients, each multiplied by a factor."""
        factors = factors_P.double()
        return Gram(self.gram_PP * factors * factors[:, None])

    def inner(self, one_KP: Tensor, other_KP: Tensor) -> Tensor:
        """[K]: of two combinations of the gradients at a time."""
        return ((one_KP @ self.gram_PP) * other_KP).sum(dim=1)

    def squared(self, coefficients_KP: Tensor) -> Tensor:
        """[K]: squared lengths of combinations of the gradients."""
        return self.inner(coefficients_KP, coefficients_KP)

    @property
    def variance(self) -> float:
        """S^2 = sum_i |g_i - mean|^2 / (P - 1), so that the mean of m gradients drawn at random without replacement
        out of n, themselves drawn so, is off the mean of the n by (1/m - 1/n) S^2 in expectation (Cochran 1977,
        Sampling techniques, theorem 2.2)."""
        count = len(self.gram_PP)
        return float(self.gram_PP.trace() - self.gram_PP.sum() / count) / (count - 1)

    def bias_share(self, repeats_BRP: Tensor, large_BP: Tensor) -> float:
        """bias^2 / (bias^2 + variance) given the pool: how far the mean of R independent choices out of the same pool
        is from the pool's, over the mean of squared errors, without what such a mean is off by chance. Both are summed
        over the pools. It may be slightly negative for an unbiased method: by chance about 1/R."""
        bias = total = 0.0
        for repeats_RP, large_P in zip(repeats_BRP, large_BP, strict=True):
            off_RP = repeats_RP - large_P
            error, mean = float(self.squared(off_RP).mean()), float(self.squared(off_RP.mean(dim=0, keepdim=True)))
            bias += mean - (error - mean) / (len(off_RP) - 1)
            total += error
        return bias / total if total > 1e-12 * self.variance else 0.0  # M = N: nothing but rounding
