"""What is found of one method at one budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
