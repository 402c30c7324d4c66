"""What estimates are worth in averages over steps: training follows these, in which variance falls and bias does not.

Two errors: of the estimates' average to the large batches' average over the same steps, which is what the choice is
answerable for, and to the population's mean, which the large batches themselves miss. Both are multiplied by the number
of steps, so that they stay what they are in one step where steps err independently of each other, rise where the same
error comes again (bias), and fall where steps make up for each other.

The effective batch n of a window is the size of a uniform draw out of the large batch that would err as much:
(1/n - 1/N) S^2 = steps x error, S^2 as in `Gram.variance`; it is corrected for the finite pool. Without that the ratio
of errors to the population, large batch / (large batch + choice), is u with
1/u - 1 = (N/n - 1) / (1 - N/P).

Shape suffixes: P population, T steps, K windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from corebatch.bench.gradients.errors import Gram

WINDOWS = (1, 10, 50, 200)
"""Lengths in steps."""

ADAM, DECAY = "adam", 0.9
"""The exponential average of gradients that Adam steps along, and its decay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Averages:
    """Averages over so many steps.

    Attributes:
        steps: of one average; of an exponential average (sum of weights)^2 / (sum of squares), 19 for 0.9.
        count: of independent averages: windows do not overlap, and of exponential averages one in `steps` counts.
        error: steps x mean |average - large batches' average|^2, in units of the error of one random choice of M:
            1 for random choices whatever the length.
        error_spread: its standard error over the windows; None for one window.
        error_rescaled: the same after the best scalar: the estimates are multiplied by what makes it least.
        error_population: steps x mean |average - population's mean|^2, in units of the error of one large batch drawn
            at random, (1/N - 1/P) S^2.
        length: mean <average, large batches' average> / mean |large batches' average|^2; below 1 an estimate is near
            because it is short, and trains short.
        effective, effective_spread: n / N, and its standard error.
    """

    steps: float
    count: float
    error: float
    error_spread: float | None
    error_rescaled: float
    error_population: float
    length: float
    effective: float
    effective_spread: float | None


def windows(metric: Gram, estimates_TP: Tensor, large_TP: Tensor, budget: int, large: int) -> dict[str, Averages]:
    """By length as text, and `ADAM`. Windows that are longer than the series are left out."""
    found = {}
    for length in WINDOWS:
        if length <= len(estimates_TP):
            averages, targets = (_averages(each, length) for each in (estimates_TP, large_TP))
            steps = torch.full((len(averages),), float(length), dtype=torch.float64)
            found[str(length)] = _window(metric, averages, targets, steps, float(len(averages)), budget, large)
    averages, targets = (exponential(each) for each in (estimates_TP, large_TP))
    steps = exponential_steps(len(averages))
    independent = len(averages) / float(steps[-1])
    found[ADAM] = _window(metric, averages, targets, steps, independent, budget, large)
    return found


def _averages(values_TP: Tensor, length: int) -> Tensor:
    """[K, P]: over windows that do not overlap; steps that do not fill one are left out."""
    count = len(values_TP) // length
    return values_TP[: count * length].view(count, length, -1).mean(dim=1)


def exponential(values_TP: Tensor) -> Tensor:
    """[T, P]: Adam's average after each step, corrected for its start at zero."""
    averages, running = torch.empty_like(values_TP), torch.zeros_like(values_TP[0])
    for step, value in enumerate(values_TP):
        running = DECAY * running + (1 - DECAY) * value
        averages[step] = running / (1 - DECAY ** (step + 1))
    return averages


def exponential_steps(count: int) -> Tensor:
    """float64 [T]: of how many equally weighted steps the average after each step has the variance."""
    powers = DECAY ** torch.arange(1, count + 1, dtype=torch.float64)
    return (1 - powers).square() / (1 - DECAY) ** 2 * (1 - DECAY**2) / (1 - powers.square())


def _window(
    metric: Gram, averages_KP: Tensor, targets_KP: Tensor, steps_K: Tensor, count: float, budget: int, large: int
) -> Averages:
    population, variance = len(metric.gram_PP), metric.variance
    errors_K = steps_K * metric.squared(averages_KP - targets_KP)
    own, along, other = (
        float((steps_K * metric.inner(*pair)).mean())
        for pair in ((averages_KP, averages_KP), (averages_KP, targets_KP), (targets_KP, targets_KP))
    )
    error, spread = float(errors_K.mean()), _standard_error(errors_K, count)
    by_random = (1 / budget - 1 / large) * variance
    unit = 1 / by_random if by_random > 0 else 0.0  # M = N: nothing is left out by anybody
    effective = 1 / (1 + large * error / variance)
    to_population = float((steps_K * metric.squared(averages_KP - 1 / population)).mean())
    return Averages(
        steps=float(steps_K[-1]),
        count=count,
        error=error * unit,
        error_spread=None if spread is None else spread * unit,
        error_rescaled=max(0.0, other - along**2 / own) * unit if own > 0 else other * unit,
        error_population=to_population / ((1 / large - 1 / population) * variance),
        length=along / other,
        effective=effective,
        effective_spread=None if spread is None else effective**2 * large * spread / variance,
    )


def _standard_error(values_K: Tensor, count: float) -> float | None:
    return float(values_K.std()) / math.sqrt(count) if len(values_K) > 1 else None


def paired_errors(metric: Gram, estimates_TP: Tensor, large_TP: Tensor, large: int) -> list[float]:
    """Of each window of 50 steps, or of each step in a shorter series: steps x error to the large batches' average x
    N / S^2, so that the effective batch is 1 / (1 + mean)."""
    length = 50 if len(estimates_TP) >= 100 else 1
    off_KP = _averages(estimates_TP - large_TP, length)
    values = length * metric.squared(off_KP) * large / metric.variance
    return [float(f"{value:.4g}") for value in values.tolist()]
