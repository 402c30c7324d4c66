"""How near is the small batch's gradient to the large batch's, and is it biased?

A fixed population of P examples has exact per-example gradients g_i of everything that is trained. In each of many
draws a large batch of N is taken out of it at random, and each method chooses M of the N, through the trainer's own
scoring and choosing. The method's estimate of the mean gradient is what a step would use: (1/M) sum_i w_i g_i, or for
uniform selectors the mean over the chosen tokens.

What a method estimates is always the large batch's own mean gradient, in the unit of its loss: for a mean over examples
the g_i are divided by the example's trained tokens, in the estimate, the large batch, the population and the yardstick
alike. A method that keeps small sources whole changes the mixture that it trains on; its error to the mixture that was
drawn is told all the same, and what it changed on purpose counts as bias.

A normaliser with a history (CoLM's Adam map) has at every draw the same one. It is made by the method's own choices on
other large batches out of the population, with the weights of the moment: in a run the weights, and so the gradients,
would have moved between its steps.

What that is worth: effective examples per unit of cost. The unit is the training of one random example, c forwards, so
that accumulating gradients over a random batch gives 1 whatever its size (the finite population apart). A step costs
M + N s / c, if scoring an example costs s forwards and chosen examples are no longer than others; counted by tokens it
costs (tokens chosen) / (tokens of a mean example) + N s / c. Importance sampling prefers long examples, so the second
is the honest one; optimizer, padding and choosing are in neither.

Shape suffixes: P population, N large batch, M small batch, D trained numbers, K draws.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corebatch.bench.gradients.costs import Costs, Ratio, measure_costs
from corebatch.bench.gradients.methods import Pair
from corebatch.bench.gradients.population import (
    History,
    Population,
    PopulationScoring,
    remembered,
)
from corebatch.errors import InputError
from corebatch.memory import FeatureMemory
from corebatch.model.moments import second_moments
from corebatch.model.weighted_loss import weighted_loss
from corebatch.sampling.tags import Sources
from corebatch.scoring import LossUnit, Scores
from corebatch.seeds import seeded

STEPS_AVERAGED = 50

WARM_UP = 100
"""Steps that a normaliser's history is made of, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A moment of training at which gradients are measured.

    Attributes:
        model: the model, in evaluation mode.
        batches: the population's rows as collated dictionaries, in order.
        second_moments: [D], Adam's bias-corrected second moments of what is trained, or None before its first step.
        eps: Adam's.
        sources: LongTensor [P], the number of each row's source; None: one source.
        table: names and counts of the sources in the data set; None: the population's own.
        optimizer: for methods with normalise "optimizer".
    """

    model: Any
    batches: Sequence[Mapping[str, Tensor]]
    second_moments: Tensor | None = None
    eps: float = 1e-8
    sources: Tensor | None = None
    table: Sources | None = None
    optimizer: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One method at one budget in one metric; errors are squared distances, in units of random's error.

    Attributes:
        method, metric: names; metric is "raw" or "adam".
        coreset: the method's settings, a `coreset:` block.
        loss: the unit of the loss, and so of all gradients: "token_mean" or "example_mean".
        budget, large, population, draws: M, N, P, K.
        error_to_large: mean of |estimate - large batch's mean|^2 by that of a random M (its mean of gradients).
        error_spread: standard error of it over the draws (bootstrap).
        effective_batch: n_eff / N, with 1/n_eff - 1/P = (error / error of N)(1/N - 1/P): the finite population is
            corrected for.
        effective_batch_spread, effective_batch_low, effective_batch_high: its standard error and 95 % interval over
            the draws (bootstrap; the population is given).
        errors: of each draw, |estimate - population's mean|^2 by the mean of the large batches', for paired
            comparisons: draw k has the same large batch for all methods.
        effective_batch_uncorrected: error of N to the population / error of the estimate to it.
        effective_batch_averaged: the same for the mean of 50 independent steps; bias does not average out.
        bias_share: bias^2 / (bias^2 + variance) of the error to the population's mean, by cross-products of
            independent draws (may be slightly negative for an unbiased method).
        length: mean of <estimate, true> / <true, true>.
        length_to_large: mean of <estimate, large batch's mean> / |large batch's mean|^2.
        cosine: mean cosine of estimate and true.
        score_ms: milliseconds of scoring N examples.
        select_ms: milliseconds of choosing, median.
        weight_max, effective_sample_size: of the weights, means over draws; the latter as a share of M.
        kept: rows taken with their whole small source, mean over draws.
        history_steps: how many steps the normaliser's history is of; None for one without.
        scoring: the way of scoring.
        feature_age: how many optimizer steps ago remembered features were computed; None where there are none.
        s: forwards that scoring one example of the large batch costs, in the mean; s_low and s_high by the least and
            greatest of the rounds. Two phases: as many of those of full as the scored rows have of the large batch's
            tokens.
        s_all_logits: the same in forwards that build all logits.
        c, c_low, c_high: (forward + backward) / forward, and the least and greatest of the rounds.
        c_checkpointing: with activation checkpointing; None for a model without it.
        tokens_cost: mean over draws of the tokens of the chosen by M times the mean of the large batch.
        cost_examples, cost_tokens: of a step, in trainings of one random example, at c.
        cost_tokens_checkpointing: at c_checkpointing.
        cost_tokens_reuse: at c_checkpointing, if the scoring forward serves as the first one of those that are
            trained, so that they pay c - 1: N s / c + M tokens_cost (c - 1) / c. None but for full with a forward.
        per_cost_examples, per_cost_tokens: effective examples (effective_batch N) by the cost of the step at c.
        per_cost_examples_checkpointing, per_cost_tokens_checkpointing, per_cost_tokens_reuse: at c_checkpointing.
        per_cost_ratios: for each c that was given, the same: "cost_examples", "cost_tokens", "cost_tokens_reuse",
            and what is effective by each, "examples", "tokens", "tokens_reuse".
    """

    method: str
    coreset: dict[str, Any]
    loss: str
    metric: str
    budget: int
    large: int
    population: int
    draws: int
    error_to_large: float
    error_spread: float
    effective_batch: float
    effective_batch_spread: float
    effective_batch_low: float
    effective_batch_high: float
    errors: list[float]
    effective_batch_uncorrected: float
    effective_batch_averaged: float
    bias_share: float
    length: float
    length_to_large: float
    cosine: float
    score_ms: float
    select_ms: float
    weight_max: float
    effective_sample_size: float
    kept: float
    history_steps: int | None
    scoring: str
    feature_age: int | None
    s: float
    s_low: float
    s_high: float
    s_all_logits: float
    c: float
    c_low: float
    c_high: float
    c_checkpointing: float | None
    tokens_cost: float
    cost_examples: float
    cost_tokens: float
    cost_tokens_checkpointing: float | None
    cost_tokens_reuse: float | None
    per_cost_examples: float
    per_cost_tokens: float
    per_cost_examples_checkpointing: float | None
    per_cost_tokens_checkpointing: float | None
    per_cost_tokens_reuse: float | None
    per_cost_ratios: dict[str, dict[str, float | None]]


@dataclass(frozen=True, slots=True)
class Past:
    """A memory that was filled at an earlier moment, and how many optimizer steps ago."""

    memory: FeatureMemory
    age: int


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
    costs: Costs | None = None,
    cost_ratios: Sequence[float] = (),
    past: Mapping[str, Past] | None = None,
    warm_up: int = WARM_UP,
) -> list[Measurement]:
    """Measures each pair at each budget, in the raw and (after an optimizer step) in Adam's metric.

    Args:
        costs: of scoring and training; None: measured here.
        cost_ratios: values of c, beside the measured ones, for which to tell what a step is worth.
        past: for pairs that remember features of an earlier moment, their memories by `Pair.remembered`. Without an
            entry an age of 0 is filled here.
        warm_up: how many steps a normaliser's history is of (CoLM's Adam map): the method itself, on so many large
            batches out of the population, with the weights as they are.

    Raises:
        InputError: the population is not larger than the large batch, or a budget than that; a c that is not above 1;
            features of an earlier moment that are not in `past`; no optimizer for a method that scales by its moments.
    """
    pairs = list(pairs)
    population = Population.of(moment.batches, moment.sources, moment.table)
    if not large < len(population):
        raise InputError(f"The population should be larger than the large batch of {large}. Found {len(population)}.")
    if not all(0 < budget <= large for budget in budgets):
        raise InputError(f"Budgets should be between 1 and {large}. Found {list(budgets)}.")
    check_cost_ratios(cost_ratios)
    memories = _memories(pairs, moment, population, past or {}, seed)
    if costs is None:
        costs = measure_costs(moment.model, population, pairs, seed=seed)
    gradients_PD = per_example_gradients(moment)
    pools = [
        torch.randperm(len(population), generator=seeded(seed, "pool", draw))[:large].sort().values
        for draw in range(draws)
    ]
    scales: dict[str, Tensor | None] = {"raw": None}
    if moment.second_moments is not None:
        scales["adam"] = 1 / (moment.second_moments.sqrt() + moment.eps)
    token_mean = {
        name: _Errors(gradients_PD if scale is None else gradients_PD * scale, pools) for name, scale in scales.items()
    }
    example_mean = {name: errors.scaled(1 / population.tokens.clamp(min=1)) for name, errors in token_mean.items()}
    plain = {budget: _random_choices(pools, budget, len(population), seed) for budget in budgets}
    scores: dict[str, Scores] = {}
    found: dict[tuple[int, int], list[Measurement]] = {}
    for number, pair in enumerate(pairs):
        arm = PopulationScoring(pair.coreset(seed), population)
        memory = None if pair.remembered is None else memories[pair.remembered]
        if memory is not None:
            arm.scoring.memory = memory.memory
        if arm.looks_at_scores(pools[0], budgets[0]) and pair.forward not in scores:
            scores[pair.forward] = arm.score(moment.model)
        moments = _feature_moments(pair, arm, moment)
        metrics = token_mean if pair.loss == "token_mean" else example_mean
        for place, budget in enumerate(budgets):
            history = None
            if arm.keeps_history:
                history = arm.history(scores[pair.forward], budget, large=large, steps=warm_up)
            drawn = _draw(arm, scores.get(pair.forward), pools, budget, pair.loss, history or History(), moments)
            prices = _prices(pair, arm, drawn, costs, large=large, budget=budget)
            for metric, errors in metrics.items():
                numbers: dict[str, Any] = errors.of(drawn.coefficients_KP, plain[budget], seed)
                found.setdefault((place, number), []).append(
                    Measurement(
                        method=pair.name,
                        coreset=pair.block,
                        loss=pair.loss,
                        metric=metric,
                        budget=budget,
                        large=large,
                        population=len(population),
                        draws=draws,
                        **numbers,
                        score_ms=prices.s.value * costs.forward_ms * large,
                        select_ms=float(torch.tensor(drawn.milliseconds).median()),
                        weight_max=sum(drawn.largest) / draws,
                        effective_sample_size=sum(drawn.sizes) / draws / budget,
                        kept=drawn.kept,
                        history_steps=None if history is None else history.steps,
                        scoring=pair.scoring_text,
                        feature_age=None if memory is None else memory.age,
                        **prices.worth(numbers["effective_batch"] * large, costs, cost_ratios),
                    )
                )
    return [line for key in sorted(found) for line in found[key]]


def check_cost_ratios(ratios: Sequence[float]) -> None:
    """Raises InputError unless each is a number above 1: a backward costs something."""
    wrong = [ratio for ratio in ratios if not 1 < ratio < math.inf]
    if wrong:
        raise InputError(f"Cost ratios (forward + backward) / forward should be above 1. Found {wrong[0]}.")


def _memories(
    pairs: Sequence[Pair], moment: Moment, population: Population, past: Mapping[str, Past], seed: int
) -> dict[str, Past]:
    """What each pair with a memory remembers, by `Pair.remembered`."""
    missing = [pair for pair in pairs if pair.remembered is not None and pair.remembered not in past]
    for pair in missing:
        if pair.way.age:
            raise InputError(
                f"{pair.name!r} needs features of {pair.way.age} steps before the moment: a memory that was filled "
                f"then, given as `past`. Found {sorted(past) or 'none'}."
            )
    now = remembered(missing, moment.model, population, seed)
    return {**past, **{key: Past(memory, 0) for key, memory in now.items()}}


def _feature_moments(pair: Pair, arm: PopulationScoring, moment: Moment) -> Tensor | None:
    """The optimizer's second moments in the order of the features, for a normaliser that scales by them."""
    normalise = arm.step.normalise
    if normalise is None or not (normalise.needs_moments or normalise.needs_shapes):
        return None
    arm.look(moment.model)
    if not normalise.needs_moments:
        return None
    if moment.optimizer is None:
        if moment.second_moments is None:  # before the first step
            return None
        raise InputError(f"{pair.name!r} scales by the optimizer's moments: Moment.optimizer should be it. Found None.")
    return second_moments(moment.optimizer, arm.step.scorer.coordinates())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prices:
    """What a step pays.

    Attributes:
        s, s_all_logits: forwards of scoring an example.
        chosen, tokens: examples that are trained, and the same in examples of mean length.
        large: N.
        reuse: whether the scoring forward may serve as the first of those that are trained.
    """

    s: Ratio
    s_all_logits: Ratio
    chosen: int
    tokens: float
    large: int
    reuse: bool

    def cost(self, trained: float, c: float) -> float:
        """Of a step, in trainings of one example."""
        return trained + self.large * self.s.value / c

    def at(self, effective: float, c: float) -> dict[str, float | None]:
        """Costs of a step, and `effective` examples by them, at one c."""
        examples, tokens = self.cost(self.chosen, c), self.cost(self.tokens, c)
        reuse = self.cost(self.tokens * (c - 1) / c, c) if self.reuse else None
        return {
            "cost_examples": examples,
            "cost_tokens": tokens,
            "cost_tokens_reuse": reuse,
            "examples": effective / examples,
            "tokens": effective / tokens,
            "tokens_reuse": None if reuse is None else effective / reuse,
        }

    def worth(self, effective: float, costs: Costs, ratios: Sequence[float]) -> dict[str, Any]:
        """The fields of a measurement that say what `effective` examples cost."""
        plain = self.at(effective, costs.training.value)
        c_again = None if costs.training_checkpointing is None else costs.training_checkpointing.value
        again: Mapping[str, float | None] = {} if c_again is None else self.at(effective, c_again)
        return {
            "s": self.s.value,
            "s_low": self.s.low,
            "s_high": self.s.high,
            "s_all_logits": self.s_all_logits.value,
            "c": costs.training.value,
            "c_low": costs.training.low,
            "c_high": costs.training.high,
            "c_checkpointing": c_again,
            "tokens_cost": self.tokens / self.chosen,
            "cost_examples": plain["cost_examples"],
            "cost_tokens": plain["cost_tokens"],
            "cost_tokens_checkpointing": again.get("cost_tokens"),
            "cost_tokens_reuse": again.get("cost_tokens_reuse"),
            "per_cost_examples": plain["examples"],
            "per_cost_tokens": plain["tokens"],
            "per_cost_examples_checkpointing": again.get("examples"),
            "per_cost_tokens_checkpointing": again.get("tokens"),
            "per_cost_tokens_reuse": again.get("tokens_reuse"),
            "per_cost_ratios": {f"{ratio:g}": self.at(effective, ratio) for ratio in ratios},
        }


def _prices(pair: Pair, arm: PopulationScoring, drawn: _Draws, costs: Costs, *, large: int, budget: int) -> _Prices:
    price = float(pair.way.options.get("cost", 0))
    s, s_all_logits = Ratio(price, price, price), Ratio(price, price, price).times(1 / costs.all_logits.value)
    if arm.runs_forwards and pair.way.price() > 0:
        part = pair.way.price(drawn.scored_share)
        s, s_all_logits = (each[pair.forward].times(part) for each in (costs.scoring, costs.scoring_all_logits))
    return _Prices(
        s=s,
        s_all_logits=s_all_logits,
        chosen=budget,
        tokens=budget * drawn.tokens_cost,
        large=large,
        reuse=pair.way.strategy.prices_reuse and arm.runs_forwards,
    )


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

    def scaled(self, factors_P: Tensor) -> _Errors:
        """Of the same gradients, each multiplied by a factor."""
        made = copy.copy(self)
        factors = factors_P.double()
        made.gram_PP = self.gram_PP * factors * factors[:, None]
        return made

    def squared(self, coefficients_KP: Tensor) -> Tensor:
        return ((coefficients_KP @ self.gram_PP) * coefficients_KP).sum(dim=1)

    def of(self, choices_KP: Tensor, plain_KP: Tensor, seed: int) -> dict[str, Any]:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draws:
    """What one pair chose in all draws.

    Attributes:
        coefficients_KP: of the estimates, float64 [K, P].
        milliseconds, sizes, largest: of each draw: time to choose, effective size of the weights, largest weight.
        tokens_cost: mean of the chosen's tokens by those of as many mean rows of the large batch.
        kept: mean of the rows that were taken with their whole source.
        scored_share: mean of the scored rows' tokens by those of the large batch.
    """

    coefficients_KP: Tensor
    milliseconds: list[float]
    sizes: list[float]
    largest: list[float]
    tokens_cost: float
    scored_share: float
    kept: float


def _draw(
    arm: PopulationScoring,
    scores: Scores | None,
    pools: Sequence[Tensor],
    budget: int,
    loss: LossUnit,
    history: History,
    moments: Tensor | None,
) -> _Draws:
    population = arm.population
    tokens, lengths = population.tokens.double(), population.lengths.double()
    coefficients = torch.zeros(len(pools), len(population), dtype=torch.float64)
    milliseconds, sizes, largest = [], [], []
    longer = scored = kept = 0.0
    for draw, pool in enumerate(pools):
        arm.state = history.state  # each draw is the step after the same past
        start = time.perf_counter()
        chosen = arm.choose(pool, scores, budget, draw, moments)
        milliseconds.append(1000 * (time.perf_counter() - start))
        if arm.step.selector.weighted or loss == "example_mean":  # uniform selectors have weights of one
            coefficients[draw, chosen.rows] = chosen.selection.weights.double().cpu() / budget
        else:  # what is trained is the mean over the chosen tokens
            coefficients[draw, chosen.rows] = tokens[pool].mean() / tokens[chosen.rows].sum()
        sizes.append(chosen.selection.effective_sample_size)
        largest.append(chosen.selection.weight_max)
        longer += float(lengths[chosen.rows].mean() / lengths[pool].mean())
        scored += float(lengths[chosen.exact].sum() / lengths[pool].sum())
        kept += chosen.kept
    return _Draws(
        coefficients_KP=coefficients,
        milliseconds=milliseconds,
        sizes=sizes,
        largest=largest,
        tokens_cost=longer / len(pools),
        scored_share=scored / len(pools),
        kept=kept / len(pools),
    )


def _random_choices(pools: Sequence[Tensor], budget: int, population: int, seed: int) -> Tensor:
    """The yardstick: the plain mean of a random M of each large batch, [K, P]."""
    coefficients = torch.zeros(len(pools), population, dtype=torch.float64)
    for draw, pool in enumerate(pools):
        picks = torch.randperm(len(pool), generator=seeded(seed, draw, "yardstick"))[:budget]
        coefficients[draw, pool[picks]] = 1 / budget
    return coefficients
