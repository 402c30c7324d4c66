"""Errors of estimated gradients, out of the inner products of exact ones.

Shape suffixes: P population, D trained numbers, K draws.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from corebatch.seeds import seeded

STEPS_AVERAGED = 50


class Errors:
    """Errors of estimates in one metric. All vectors are combinations of the P gradients, so the P x P Gram matrix
    (in float64) holds every inner product that is needed."""

    def __init__(self, gradients_PD: Tensor, pools: Sequence[Tensor]) -> None:
        self.gram_PP = _gram(gradients_PD)
        population = len(gradients_PD)
        self.true_P = torch.full((population,), 1 / population, dtype=torch.float64)
        self.large_KP = torch.zeros(len(pools), population, dtype=torch.float64)
        for draw, pool in enumerate(pools):
            self.large_KP[draw, pool] = 1 / len(pool)

    def scaled(self, factors_P: Tensor) -> Errors:
        """Of the same gradients, each multiplied by a factor."""
        made = copy.copy(self)
        factors = factors_P.double()
        made.gram_PP = self.gram_PP * factors * factors[:, None]
        return made

    def squared(self, coefficients_KP: Tensor) -> Tensor:
        """[K]: squared lengths of combinations of the gradients."""
        return ((coefficients_KP @ self.gram_PP) * coefficients_KP).sum(dim=1)

    def of(self, choices_KP: Tensor, plain_KP: Tensor, seed: int) -> dict[str, Any]:
        """The fields of a `Measurement` that say how good estimates are, beside random choices of as many rows."""
        population, large = len(self.true_P), int((self.large_KP[0] > 0).sum())
        to_large, plain_to_large = self.squared(choices_KP - self.large_KP), self.squared(plain_KP - self.large_KP)
        deviations = choices_KP - self.true_P
        error, error_large = self.squared(deviations), self.squared(self.large_KP - self.true_P)
        draws = len(error)
        total = self.squared(deviations.sum(dim=0, keepdim=True))[0]
        bias = float((total - error.sum()) / (draws * (draws - 1)))
        mean_error, mean_large = float(error.mean()), float(error_large.mean())
        ratio = mean_error / mean_large

        def effective(ratio: Any) -> Any:
            return 1 / (ratio * (1 / large - 1 / population) + 1 / population) / large

        averaged = max(bias, 0.0) + (mean_error - bias) / STEPS_AVERAGED
        true_square = float(self.squared(self.true_P.unsqueeze(0))[0])
        along = choices_KP @ self.gram_PP @ self.true_P
        along_large = ((choices_KP @ self.gram_PP) * self.large_KP).sum(dim=1)
        picks = torch.randint(draws, (400, draws), generator=seeded(seed, "bootstrap"))
        yardstick = float(plain_to_large.mean())
        if yardstick == 0:  # M = N: nothing is left out by anybody
            relative = spread = 0.0
        else:
            relative = float(to_large.mean()) / yardstick
            spread = float((to_large[picks].mean(dim=1) / plain_to_large[picks].mean(dim=1)).std())
        resampled = effective(error[picks].mean(dim=1) / error_large[picks].mean(dim=1))
        low, high = torch.quantile(resampled, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return {
            "error_to_large": relative,
            "error_spread": spread,
            "effective_batch": effective(ratio),
            "effective_batch_spread": float(resampled.std()),
            "effective_batch_low": low,
            "effective_batch_high": high,
            "errors": [float(f"{value:.4g}") for value in (error / mean_large).tolist()],
            "effective_batch_uncorrected": 1 / ratio,
            "effective_batch_averaged": mean_large / STEPS_AVERAGED / averaged,
            "bias_share": bias / mean_error,
            "length": float(along.mean()) / true_square,
            "length_to_large": float((along_large / self.squared(self.large_KP)).mean()),
            "cosine": float((along / (self.squared(choices_KP).sqrt() * true_square**0.5)).mean()),
        }


def _gram(gradients_PD: Tensor) -> Tensor:
    """P x P in float64, over slices of D."""
    gram = torch.zeros(len(gradients_PD), len(gradients_PD), dtype=torch.float64, device=gradients_PD.device)
    for part in gradients_PD.split(2**16, dim=1):
        wide = part.double()
        gram += wide @ wide.T
    return gram.cpu()


def random_choices(pools: Sequence[Tensor], budget: int, population: int, seed: int) -> Tensor:
    """The yardstick: the plain mean of a random M of each large batch, [K, P]."""
    coefficients = torch.zeros(len(pools), population, dtype=torch.float64)
    for draw, pool in enumerate(pools):
        picks = torch.randperm(len(pool), generator=seeded(seed, draw, "yardstick"))[:budget]
        coefficients[draw, pool[picks]] = 1 / budget
    return coefficients
