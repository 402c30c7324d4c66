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

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corebatch.bench.gradients.costs import Costs, measure_costs
from corebatch.bench.gradients.draws import draw_all
from corebatch.bench.gradients.errors import Errors, random_choices
from corebatch.bench.gradients.measurement import Measurement
from corebatch.bench.gradients.methods import Method
from corebatch.bench.gradients.population import History, Population, PopulationScoring, remembered
from corebatch.bench.gradients.prices import prices
from corebatch.errors import InputError
from corebatch.memory import FeatureMemory
from corebatch.model.moments import second_moments
from corebatch.model.weighted_loss import weighted_loss
from corebatch.sampling.tags import Sources
from corebatch.scoring import LossUnit, Scores
from corebatch.seeds import seeded

WARM_UP = 100
"""Steps that a normaliser's history is made of, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
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


@dataclass(frozen=True, slots=True)
class Past:
    """A memory that was filled at an earlier moment, and how many optimizer steps ago."""

    memory: FeatureMemory
    age: int


def per_example_gradients(snapshot: Snapshot) -> Tensor:
    """[P, D]: gradients of each row's summed token loss by everything that is trained; one backward a row."""
    model = snapshot.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("The model should have trained parameters. Found none.")
    rows = []
    for batch in snapshot.batches:
        for number in range(len(batch["input_ids"])):
            row = {key: value[number : number + 1] for key, value in batch.items()}
            width = int(row["attention_mask"].sum()) if "attention_mask" in row else row["input_ids"].shape[1]
            row = {key: value[:, :width] for key, value in row.items()}
            loss, _ = weighted_loss(model, model, row, torch.ones(1, device=row["input_ids"].device))
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows)


def measure(
    snapshot: Snapshot,
    methods: Iterable[Method],
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
    """Measures each method at each budget, in the raw and (after an optimizer step) in Adam's metric.

    Args:
        costs: of scoring and training; None: measured here.
        cost_ratios: values of c, beside the measured ones, for which to tell what a step is worth.
        past: for methods that remember features of an earlier moment, their memories by `Method.remembered`. Without an
            entry an age of 0 is filled here.
        warm_up: how many steps a normaliser's history is of (CoLM's Adam map): the method itself, on so many large
            batches out of the population, with the weights as they are.

    Raises:
        InputError: the population is not larger than the large batch, or a budget than that; a c that is not above 1;
            features of an earlier moment that are not in `past`; no optimizer for a method that scales by its moments.
    """
    methods = list(methods)
    population = Population.of(snapshot.batches, snapshot.sources, snapshot.table)
    _check_sizes(population, large, budgets, draws)
    check_cost_ratios(cost_ratios)
    memories = _memories(methods, snapshot, population, past or {}, seed)
    if costs is None:
        costs = measure_costs(snapshot.model, population, methods, seed=seed)
    exact = _Exact.of(snapshot, population, large, budgets, draws, seed)
    scores: dict[str, Scores] = {}
    found = [
        _of_method(method, snapshot, exact, costs, scores, memories, budgets, cost_ratios, warm_up)
        for method in methods
    ]
    return [line for place in range(len(budgets)) for lines in found for line in lines[place]]


def _check_sizes(population: Population, large: int, budgets: Sequence[int], draws: int) -> None:
    if not large < len(population):
        raise InputError(f"The population should be larger than the large batch of {large}. Found {len(population)}.")
    if not budgets or not all(0 < budget <= large for budget in budgets):
        raise InputError(f"Budgets should be between 1 and {large}. Found {list(budgets) or 'none'}.")
    if draws < 1:
        raise InputError(f"draws should be at least 1. Found {draws}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exact:
    """The large batches that are drawn, and what every method is measured by on them.

    Attributes:
        pools: of each draw, LongTensor [N] of numbers in the population, ascending.
        errors: by the unit of the loss and by metric.
        plain: by budget, what random choices of as many rows give.
    """

    population: Population
    pools: Sequence[Tensor]
    errors: Mapping[LossUnit, Mapping[str, Errors]]
    plain: Mapping[int, Tensor]
    seed: int

    @classmethod
    def of(
        cls, snapshot: Snapshot, population: Population, large: int, budgets: Sequence[int], draws: int, seed: int
    ) -> _Exact:
        gradients_PD = per_example_gradients(snapshot)
        pools = [
            torch.randperm(len(population), generator=seeded(seed, "pool", number))[:large].sort().values
            for number in range(draws)
        ]
        token_mean = {"raw": Errors(gradients_PD, pools)}
        if snapshot.second_moments is not None:
            scale = 1 / (snapshot.second_moments.sqrt() + snapshot.eps)
            token_mean["adam"] = Errors(gradients_PD * scale, pools)
        by_tokens = 1 / population.tokens.clamp(min=1)
        example_mean = {name: errors.scaled(by_tokens) for name, errors in token_mean.items()}
        return cls(
            population=population,
            pools=pools,
            errors={"token_mean": token_mean, "example_mean": example_mean},
            plain={budget: random_choices(pools, budget, len(population), seed) for budget in budgets},
            seed=seed,
        )


def _of_method(
    method: Method,
    snapshot: Snapshot,
    exact: _Exact,
    costs: Costs,
    scores: dict[str, Scores],
    memories: Mapping[str, Past],
    budgets: Sequence[int],
    cost_ratios: Sequence[float],
    warm_up: int,
) -> list[list[Measurement]]:
    """For each budget, a measurement in each metric.

    Args:
        scores: by `Method.forward`; what is missing is added.
    """
    arm = PopulationScoring(method.coreset(exact.seed), exact.population)
    memory = None if method.remembered is None else memories[method.remembered]
    if memory is not None:
        arm.scoring.memory = memory.memory
    large = len(exact.pools[0])
    if arm.looks_at_scores(exact.pools[0], budgets[0]) and method.forward not in scores:
        scores[method.forward] = arm.score(snapshot.model)
    moments = _feature_moments(method, arm, snapshot)
    found = []
    for budget in budgets:
        history = None
        if arm.keeps_history:
            history = arm.history(scores[method.forward], budget, large=large, steps=warm_up)
        drawn = draw_all(
            arm, scores.get(method.forward), exact.pools, budget, method.loss, history or History(), moments
        )
        paid = prices(method, arm, drawn, costs, large=large, budget=budget)
        common = {
            **_settings(method, exact, budget),
            "score_ms": paid.s.value * costs.forward_ms * large,
            **drawn.fields(budget),
            "history_steps": None if history is None else history.steps,
            "scoring": method.scoring_text,
            "feature_age": None if memory is None else memory.age,
        }
        lines = []
        for metric, errors in exact.errors[method.loss].items():
            numbers = errors.of(drawn.coefficients_KP, exact.plain[budget], exact.seed)
            worth = paid.worth(numbers["effective_batch"] * large, costs, cost_ratios)
            lines.append(Measurement(metric=metric, **common, **numbers, **worth))
        found.append(lines)
    return found


def _settings(method: Method, exact: _Exact, budget: int) -> dict[str, Any]:
    """The fields of a measurement that say what was measured."""
    return {
        "method": method.name,
        "coreset": method.block,
        "loss": method.loss,
        "budget": budget,
        "large": len(exact.pools[0]),
        "population": len(exact.population),
        "draws": len(exact.pools),
    }


def check_cost_ratios(ratios: Sequence[float]) -> None:
    """Raises InputError unless each is a number above 1: a backward costs something."""
    wrong = [ratio for ratio in ratios if not 1 < ratio < math.inf]
    if wrong:
        raise InputError(f"Cost ratios (forward + backward) / forward should be above 1. Found {wrong[0]}.")


def _memories(
    methods: Sequence[Method], snapshot: Snapshot, population: Population, past: Mapping[str, Past], seed: int
) -> dict[str, Past]:
    """What each method with a memory remembers, by `Method.remembered`."""
    missing = [method for method in methods if method.remembered is not None and method.remembered not in past]
    for method in missing:
        if method.way.age:
            raise InputError(
                f"{method.name!r} needs features of {method.way.age} steps before the moment: a memory that was filled "
                f"then, given as `past`. Found {sorted(past) or 'none'}."
            )
    now = remembered(missing, snapshot.model, population, seed)
    return {**past, **{key: Past(memory, 0) for key, memory in now.items()}}


def _feature_moments(method: Method, arm: PopulationScoring, snapshot: Snapshot) -> Tensor | None:
    """The optimizer's second moments in the order of the features, for a normaliser that scales by them."""
    normalise = arm.step.normalise
    if normalise is None or not (normalise.needs_moments or normalise.needs_shapes):
        return None
    arm.look(snapshot.model)
    if not normalise.needs_moments:
        return None
    if snapshot.optimizer is None:
        if snapshot.second_moments is None:  # before the first step
            return None
        raise InputError(
            f"{method.name!r} scales by the optimizer's moments: Snapshot.optimizer should be it. Found None."
        )
    return second_moments(snapshot.optimizer, arm.step.scorer.coordinates())
