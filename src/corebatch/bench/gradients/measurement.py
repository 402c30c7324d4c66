"""What is found of one method at one budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One method at one budget in one metric, over a series of steps (`Series`).

    Attributes:
        method, metric: names; metric is "raw" or "adam".
        coreset: the method's settings, a `coreset:` block.
        loss: the unit of the loss, and so of all gradients: "token_mean" or "example_mean".
        objective: what the large batch claims: "tokens" or "sources".
        budget, large, population, draws: M, N, P, T: as many steps, each with a large batch of its own, are measured.
        warm_up: steps before them, in which what is carried from step to step fills.
        windows: by length in steps ("1" to "200") and for the exponential average that Adam steps along ("adam") the
            fields of `Averages`, and
            per_cost_tokens, per_cost_positions: effective examples (effective N) by cost_tokens, cost_positions.
        errors: of each window of 50 steps (of 1 in a shorter series) the error to the large batches, in units by which
            the effective batch is 1 / (1 + mean): for paired comparisons, as all methods have the same large batches.
        bias_given_pool: bias^2 as a share of the error given the pool, of choices with nothing carried; see
            `Gram.bias_share`.
        weights: the fields of `MeanWeights`: what examples and sources are trained with on average.
        score_ms: milliseconds of scoring N examples.
        select_ms: milliseconds of choosing, median.
        weight_max, effective_sample_size: of the weights, means over steps; the latter as a share of M.
        kept: rows taken with their whole small source, mean over steps.
        scoring: the way of scoring.
        feature_age: how many optimizer steps ago remembered features were computed; None where there are none.
        s: forwards that scoring one example of the large batch costs, in the mean; s_low and s_high by the least and
            greatest of the rounds. Two phases: as many of those of full as the scored rows have of the large batch's
            tokens.
        s_all_logits: the same in forwards that build all logits.
        c, c_low, c_high: (forward + backward) / forward, and the least and greatest of the rounds.
        c_checkpointing: with activation checkpointing; None for a model without it.
        tokens_cost: mean over steps of the tokens of the chosen by M times the mean of the large batch.
        positions_cost: the same of padded positions, the rows of both sorted by length and cut into micro-batches of
            `micro_batch` rows.
        cost_examples, cost_tokens, cost_positions: of a step, in trainings of one random example (of mean tokens, of
            mean positions), at c.
        cost_tokens_checkpointing: at c_checkpointing.
        cost_tokens_reuse: at c_checkpointing, if the scoring forward serves as the first one of those that are
            trained, so that they pay c - 1: N s / c + M tokens_cost (c - 1) / c. None but for full with a forward.
        cost_ratios: for each c that was given: cost_examples, cost_tokens, cost_positions, cost_tokens_reuse.
    """

    method: str
    coreset: dict[str, Any]
    loss: str
    objective: str
    metric: str
    budget: int
    large: int
    population: int
    draws: int
    warm_up: int
    micro_batch: int
    windows: dict[str, dict[str, float | None]]
    errors: list[float]
    bias_given_pool: float
    weights: dict[str, Any]
    score_ms: float
    select_ms: float
    weight_max: float
    effective_sample_size: float
    kept: float
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
    positions_cost: float
    cost_examples: float
    cost_tokens: float
    cost_positions: float
    cost_tokens_checkpointing: float | None
    cost_tokens_reuse: float | None
    cost_ratios: dict[str, dict[str, float | None]]
