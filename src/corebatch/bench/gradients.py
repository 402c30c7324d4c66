"""How near is the small batch's gradient to the large batch's, and is it biased?

A fixed population of P examples has exact per-example gradients g_i of everything that is trained. In each of many
draws a large batch of N is taken out of it at random, and each method chooses M of the N. The method's estimate of the
mean gradient is what a step would use: (1/M) sum_i w_i g_i, or for uniform selectors the mean over the chosen tokens.

Shape suffixes: P population, N large batch, M small batch, D trained numbers, K draws.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corebatch.bench.methods import Pair
from corebatch.errors import InputError
from corebatch.scoring import Scores, seeded
from corebatch.trainer.weighted_loss import weighted_loss

STEPS_AVERAGED = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A moment of training at which gradients are measured.

    Attributes:
        model: the model, in evaluation mode.
        batches: the population's rows as collated dictionaries, in order.
        second_moments: [D], Adam's bias-corrected second moments of what is trained, or None before its first step.
        eps: Adam's.
    """

    model: Any
    batches: Sequence[Mapping[str, Tensor]]
    second_moments: Tensor | None = None
    eps: float = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One method at one budget in one metric; errors are squared distances, in units of random's error.

    Attributes:
        method, metric: names; metric is "raw" or "adam".
        budget, large, population, draws: M, N, P, K.
        error_to_large: mean of |estimate - large batch's mean|^2 by that of a random M (its mean of gradients).
        error_spread: standard error of it over the draws (bootstrap).
        effective_batch: n_eff / N, with 1/n_eff - 1/P = (error / error of N)(1/N - 1/P): the finite population is
            corrected for.
        effective_batch_uncorrected: error of N to the population / error of the estimate to it.
        effective_batch_averaged: the same for the mean of 50 independent steps; bias does not average out.
        bias_share: bias^2 / (bias^2 + variance) of the error to the population's mean, by cross-products of
            independent draws (may be slightly negative for an unbiased method).
        length: mean of <estimate, true> / <true, true>.
        cosine: mean cosine of estimate and true.
        score_ms: milliseconds of scoring N examples.
        select_ms: milliseconds of choosing, median.
        weight_max, effective_sample_size: of the weights, means over draws; the latter as a share of M.
    """

    method: str
    metric: str
    budget: int
    large: int
    population: int
    draws: int
    error_to_large: float
    error_spread: float
    effective_batch: float
    effective_batch_uncorrected: float
    effective_batch_averaged: float
    bias_share: float
    length: float
    cosine: float
    score_ms: float
    select_ms: float
    weight_max: float
    effective_sample_size: float


def per_example_gradients(moment: Moment) -> Tensor:
    """[P, D]: gradients of each row's summed token loss by everything that is trained; one backward a row."""
    model = moment.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("The model should have trained parameters. Found none.")
    rows = []
    for batch in moment.batches:
        for number in range(len(batch["input_ids"])):
            row = {key: value[number : number + 1] for key, value in batch.items()}
            width = int(row["attention_mask"].sum()) if "attention_mask" in row else row["input_ids"].shape[1]
            row = {key: value[:, :width] for key, value in row.items()}
            loss, _ = weighted_loss(model, model, row, torch.ones(1, device=row["input_ids"].device))
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows)


def measure(
    moment: Moment,
    pairs: Iterable[Pair],
    *,
    large: int = 128,
    budgets: Sequence[int] = (64, 32, 16),
    draws: int = 60,
    seed: int = 0,
) -> list[Measurement]:
    """Measures each pair at each budget, in the raw and (after an optimizer step) in Adam's metric.

    Raises:
        InputError: the population is not larger than the large batch, or a budget than that.
    """
    pairs = list(pairs)
    gradients_PD = per_example_gradients(moment)
    population = len(gradients_PD)
    if not large < population:
        raise InputError(f"The population should be larger than the large batch of {large}. Found {population}.")
    if not all(0 < budget <= large for budget in budgets):
        raise InputError(f"Budgets should be between 1 and {large}. Found {list(budgets)}.")
    scored = {pair.scoring: _score(pair, moment) for pair in {pair.scoring: pair for pair in pairs}.values()}
    pools = [
        torch.randperm(population, generator=seeded(seed, "pool", draw))[:large].sort().values for draw in range(draws)
    ]
    scales: dict[str, Tensor | None] = {"raw": None}
    if moment.second_moments is not None:
        scales["adam"] = 1 / (moment.second_moments.sqrt() + moment.eps)
    metrics = {
        name: _Errors(gradients_PD if scale is None else gradients_PD * scale, pools) for name, scale in scales.items()
    }
    found = []
    for budget in budgets:
        plain = _random_choices(pools, budget, population, seed)
        for pair in pairs:
            scores, score_ms = scored[pair.scoring]
            choices, milliseconds, sizes, largest = _choices(pair, scores, pools, budget, seed)
            for metric, errors in metrics.items():
                found.append(
                    Measurement(
                        method=pair.name,
                        metric=metric,
                        budget=budget,
                        large=large,
                        population=population,
                        draws=draws,
                        **errors.of(choices, plain, seed),
                        score_ms=score_ms * large / population,
                        select_ms=float(torch.tensor(milliseconds).median()),
                        weight_max=sum(largest) / draws,
                        effective_sample_size=sum(sizes) / draws / budget,
                    )
                )
    return found


class _Errors:
    """Errors of estimates in one metric. All vectors are combinations of the P gradients, so the P x P Gram matrix
    (in float64) holds every inner product that is needed."""

    def __init__(self, gradients_PD: Tensor, pools: Sequence[Tensor]) -> None:
        self.gram_PP = _gram(gradients_PD)
        population = len(gradients_PD)
        self.true_P = torch.full((population,), 1 / population, dtype=torch.float64)
        self.large_KP = torch.zeros(len(pools), population, dtype=torch.float64)
        for draw, pool in enumerate(pools):
            self.large_KP[draw, pool] = 1 / len(pool)

    def squared(self, coefficients_KP: Tensor) -> Tensor:
        return ((coefficients_KP @ self.gram_PP) * coefficients_KP).sum(dim=1)

    def of(self, choices_KP: Tensor, plain_KP: Tensor, seed: int) -> dict[str, float]:
        population, large = len(self.true_P), int((self.large_KP[0] > 0).sum())
        to_large, plain_to_large = self.squared(choices_KP - self.large_KP), self.squared(plain_KP - self.large_KP)
        deviations = choices_KP - self.true_P
        error, error_large = self.squared(deviations), self.squared(self.large_KP - self.true_P)
        draws = len(error)
        total = self.squared(deviations.sum(dim=0, keepdim=True))[0]
        bias = float((total - error.sum()) / (draws * (draws - 1)))
        mean_error, mean_large = float(error.mean()), float(error_large.mean())
        ratio = mean_error / mean_large
        inverse = ratio * (1 / large - 1 / population) + 1 / population
        averaged = max(bias, 0.0) + (mean_error - bias) / STEPS_AVERAGED
        true_square = float(self.squared(self.true_P.unsqueeze(0))[0])
        along = choices_KP @ self.gram_PP @ self.true_P
        picks = torch.randint(draws, (400, draws), generator=seeded(seed, "bootstrap"))
        yardstick = float(plain_to_large.mean())
        if yardstick == 0:  # M = N: nothing is left out by anybody
            relative = spread = 0.0
        else:
            relative = float(to_large.mean()) / yardstick
            spread = float((to_large[picks].mean(dim=1) / plain_to_large[picks].mean(dim=1)).std())
        return {
            "error_to_large": relative,
            "error_spread": spread,
            "effective_batch": 1 / inverse / large,
            "effective_batch_uncorrected": 1 / ratio,
            "effective_batch_averaged": mean_large / STEPS_AVERAGED / averaged,
            "bias_share": bias / mean_error,
            "length": float(along.mean()) / true_square,
            "cosine": float((along / (self.squared(choices_KP).sqrt() * true_square**0.5)).mean()),
        }


def _gram(gradients_PD: Tensor) -> Tensor:
    """P x P in float64, over slices of D."""
    gram = torch.zeros(len(gradients_PD), len(gradients_PD), dtype=torch.float64, device=gradients_PD.device)
    for part in gradients_PD.split(2**16, dim=1):
        wide = part.double()
        gram += wide @ wide.T
    return gram.cpu()


def _score(pair: Pair, moment: Moment) -> tuple[Scores, float]:
    """Scores of the population and milliseconds for it; the first batch is scored twice, to warm up."""
    scorer, _ = pair.build()
    scorer.run(moment.model, moment.batches[0])
    _synchronise()
    start = time.perf_counter()
    scores = Scores.cat([scorer.run(moment.model, batch) for batch in moment.batches])
    _synchronise()
    return scores, 1000 * (time.perf_counter() - start)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _choices(
    pair: Pair, scores: Scores, pools: Sequence[Tensor], budget: int, seed: int
) -> tuple[Tensor, list[float], list[float], list[float]]:
    """Coefficients [K, P] of the estimates, milliseconds of each choice, the weights' effective sizes and largest."""
    _, selector = pair.build()
    population = len(scores.tokens)
    tokens = scores.tokens.double().cpu()
    coefficients = torch.zeros(len(pools), population, dtype=torch.float64)
    milliseconds, sizes, largest = [], [], []
    for draw, pool in enumerate(pools):
        there = pool.to(scores.features.device)
        features = scores.features[there]
        losses = None if scores.losses is None else scores.losses[there]
        start = time.perf_counter()
        selection = selector.select(features, budget, seeded(seed, draw, "select"), losses=losses)
        milliseconds.append(1000 * (time.perf_counter() - start))
        chosen = pool[selection.indices.cpu()]
        weights = selection.weights.double().cpu()
        if selector.weighted:
            coefficients[draw, chosen] = weights / budget
        else:  # what is trained is the mean over the chosen tokens
            coefficients[draw, chosen] = tokens[pool].mean() / tokens[chosen].sum()
        sizes.append(selection.effective_sample_size)
        largest.append(selection.weight_max)
    return coefficients, milliseconds, sizes, largest


def _random_choices(pools: Sequence[Tensor], budget: int, population: int, seed: int) -> Tensor:
    """The yardstick: the plain mean of a random M of each large batch, [K, P]."""
    coefficients = torch.zeros(len(pools), population, dtype=torch.float64)
    for draw, pool in enumerate(pools):
        picks = torch.randperm(len(pool), generator=seeded(seed, draw, "yardstick"))[:budget]
        coefficients[draw, pool[picks]] = 1 / budget
    return coefficients
