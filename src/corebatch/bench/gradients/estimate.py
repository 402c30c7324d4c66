"""How near is the small batch's gradient to the large batch's over many steps, and is it biased?

A fixed population of P examples has exact per-example gradients g_i of everything that is trained. In a series of steps
large batches of N are taken out of it in epochs, as training takes them, and each method chooses M of the N, through
the trainer's own scoring and choosing. The method's estimate of the mean gradient is what a step would use:
(1/M) sum_i w_i g_i, or for uniform selectors the mean over the chosen tokens. It is judged by its averages over windows
of steps (`windows.py`).

What a method estimates is always the large batch's own mean gradient, in the unit of its loss: for a mean over examples
the g_i are divided by the example's trained tokens, in the estimate, the large batch and the population alike; under
the objective "sources" they are multiplied by u_i. A method that keeps small sources whole changes the mixture that it
trains on; its error to the mixture that was drawn is told all the same, and what it changed on purpose counts as bias.

The weights of the model stand still, so what a normaliser (CoLM's Adam map) or a sum of past errors carries on is that
of a run whose gradients do not move between its steps; features that are remembered have the age that is asked for.

What that is worth: effective examples per unit of cost. The unit is the training of one random example, c forwards, so
that accumulating gradients over a random batch gives 1 whatever its size. A step costs M + N s / c, if scoring an
example costs s forwards and chosen examples are no longer than others; counted by tokens it costs (tokens chosen) /
(tokens of a mean example) + N s / c, and by positions the same of padded positions. Importance sampling prefers long
examples, so these are the honest ones; optimizer and choosing are in none.

Shape suffixes: P population, N large batch, M small batch, D trained parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from corebatch.bench.gradients.costs import Costs, measure_costs
from corebatch.bench.gradients.errors import Gram
from corebatch.bench.gradients.judge import Judge
from corebatch.bench.gradients.measurement import Measurement
from corebatch.bench.gradients.methods import Method
from corebatch.bench.gradients.population import Objective, Population, PopulationScoring, in_few_columns, remembered
from corebatch.bench.gradients.series import Chooses, Series
from corebatch.errors import InputError
from corebatch.memory import FeatureMemory
from corebatch.model.moments import second_moments
from corebatch.model.weighted_loss import weighted_loss
from corebatch.sampling.tags import Sources
from corebatch.scoring import Scores

DRAWS = 1600
"""Steps of a series: eight of the longest windows."""

WARM_UP = 100
"""Steps before the first that is measured, at most."""


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
    """[P, D]: gradients of each row's summed token loss by everything that is trained."""
    return torch.stack([gradient for _, gradient in gradients_of_rows(snapshot)])


def gradients_of_rows(snapshot: Snapshot) -> Iterator[tuple[float, Tensor]]:
    """Of each row its summed token loss, and the gradient [D] of that by everything that is trained; one backward a
    row. Raises InputError: nothing is trained."""
    model = snapshot.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("The model should have trained parameters. Found none.")
    for batch in snapshot.batches:
        for number in range(len(batch["input_ids"])):
            row = {key: value[number : number + 1] for key, value in batch.items()}
            width = int(row["attention_mask"].sum()) if "attention_mask" in row else row["input_ids"].shape[1]
            row = {key: value[:, :width] for key, value in row.items()}
            loss, _ = weighted_loss(model, model, row, torch.ones(1, device=row["input_ids"].device))
            yield float(loss.detach()), torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def measure(
    snapshot: Snapshot,
    methods: Iterable[Method],
    *,
    large: int = 128,
    budgets: Sequence[int] = (64, 32, 16),
    draws: int = DRAWS,
    seed: int = 0,
    objectives: Sequence[Objective] = ("tokens",),
    costs: Costs | None = None,
    cost_ratios: Sequence[float] = (),
    past: Mapping[str, Past] | None = None,
    warm_up: int = WARM_UP,
    micro_batch: int = 8,
) -> list[Measurement]:
    """Measures each method at each budget, in the raw and (after an optimizer step) in Adam's metric.

    Args:
        draws: how many steps are measured.
        objectives: what the large batch claims; all methods are measured by each of them.
        costs: of scoring and training; None: measured here.
        cost_ratios: values of c, beside the measured ones, for which to tell what a step costs.
        past: for methods that remember features of an earlier moment, their memories by `Method.remembered`. Without an
            entry an age of 0 is filled here.
        warm_up: how many steps come before those that are measured.
        micro_batch: rows of a training micro-batch, by which positions are counted.

    Raises:
        InputError: the population is not larger than the large batch, or a budget than that; fewer than two steps; a c
            that is not above 1; another objective than "tokens" with a loss that is a mean over examples; features of
            an earlier moment that are not in `past`; no optimizer for a method that scales by its moments.
    """
    methods = list(methods)
    check_objectives(objectives, methods)
    population = Population.of(snapshot.batches, snapshot.sources, snapshot.table)
    _check_sizes(population, large, budgets, draws)
    check_cost_ratios(cost_ratios)
    memories = _memories(methods, snapshot, population, past or {}, seed)
    if costs is None:
        costs = measure_costs(snapshot.model, population, methods, seed=seed)
    series = Series.of(len(population), large, draws, seed, warm_up=warm_up, micro_batch=micro_batch)
    grams, made = _grams(snapshot), list[Measurement]()
    scores: dict[str, Scores] = {}
    for objective in objectives:
        judge = Judge(
            population=population.under(objective),
            series=series,
            grams=grams,
            objective=objective,
            costs=costs,
            cost_ratios=cost_ratios,
            seed=seed,
        )
        found = [_of_method(method, snapshot, judge, memories, scores, budgets) for method in methods]
        made += [line for place in range(len(budgets)) for lines in found for line in lines[place]]
    return made


def _of_method(
    method: Method,
    snapshot: Snapshot,
    judge: Judge,
    memories: Mapping[str, Past],
    scores: dict[str, Scores],
    budgets: Sequence[int],
) -> list[list[Measurement]]:
    """For each budget, a measurement in each metric.

    Args:
        scores: by `Method.forward`; what is missing is added.
    """
    past = None if method.remembered is None else memories[method.remembered]
    memory, pool = None if past is None else past.memory, judge.series.pools_TN[0]
    chooses = chooses_of(method, snapshot, judge.population, pool, budgets[0], memory, scores, judge.seed)
    return [judge.measure(method, chooses, budget, None if past is None else past.age) for budget in budgets]


def chooses_of(
    method: Method,
    snapshot: Snapshot,
    population: Population,
    pool_N: Tensor,
    budget: int,
    memory: FeatureMemory | None,
    scores: dict[str, Scores],
    seed: int,
) -> Chooses:
    """A method on a population, scored where its steps look at scores.

    Args:
        pool_N, budget: of a step.
        memory: what a method that remembers knows.
        scores: by `Method.forward`; what is missing is added.
    """
    scorer, _ = method.build()  # one, which will have seen the model; all else is made anew for every series
    settings = replace(method.coreset(seed), scorer=scorer, scorer_options={})
    make = partial(PopulationScoring, settings, population, memory)
    arm, given = make(), None
    if arm.looks_at_scores(pool_N, budget):
        if method.forward not in scores:
            scores[method.forward] = arm.score(snapshot.model)
        given = in_few_columns(scores[method.forward]) if arm.by_inner_products else scores[method.forward]
    return Chooses(make=make, scores=given, loss=method.loss, moments=_feature_moments(method, arm, snapshot))


def _check_sizes(population: Population, large: int, budgets: Sequence[int], draws: int) -> None:
    if not large < len(population):
        raise InputError(f"The population should be larger than the large batch of {large}. Found {len(population)}.")
    if not budgets or not all(0 < budget <= large for budget in budgets):
        raise InputError(f"Budgets should be between 1 and {large}. Found {list(budgets) or 'none'}.")
    if draws < 2:
        raise InputError(f"draws should be at least 2. Found {draws}.")


def check_objectives(objectives: Iterable[str], methods: Sequence[Method]) -> None:
    """Raises InputError for an unknown objective, or one that a mean over examples does not have."""
    known, others = get_args(Objective), [method.name for method in methods if method.loss != "token_mean"]
    for objective in objectives:
        if objective not in known:
            raise InputError(f"An objective should be one of {', '.join(known)}. Found {objective!r}.")
        if objective != "tokens" and others:
            raise InputError(
                f"The objective {objective!r} weighs the losses of tokens, so it goes with loss token_mean. Found "
                f"example_mean in {', '.join(others)}."
            )


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


def _grams(snapshot: Snapshot) -> dict[str, Gram]:
    """Of the exact gradients, by metric."""
    gradients_PD = per_example_gradients(snapshot)
    found = {"raw": Gram.of(gradients_PD)}
    if snapshot.second_moments is not None:
        found["adam"] = Gram.of(gradients_PD / (snapshot.second_moments.sqrt() + snapshot.eps))
    return found


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
