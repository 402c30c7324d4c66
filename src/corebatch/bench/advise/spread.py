"""What choosing the rows of a step is worth on this run: by counts of labels, or inclusion by tokens, by lengths of
gradients, by cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from corebatch.bench.advise.finding import MORE_MINUTES, TO_LOSS, Finding
from corebatch.bench.advise.probe import Probe
from corebatch.bench.advise.row_gradients import (
    NORMS,
    RowGradients,
    population_of,
    row_gradients,
    weights_kept,
)
from corebatch.bench.advise.worth import LEAST, WINDOW, Arrival, chosen, gain, plain, worth
from corebatch.bench.gradients.costs import Costs, measure_costs
from corebatch.bench.gradients.estimate import chooses_of
from corebatch.bench.gradients.methods import Method
from corebatch.bench.gradients.parsing import parse_method
from corebatch.bench.gradients.population import Population
from corebatch.bench.gradients.prices import prices
from corebatch.bench.gradients.series import Series, positions
from corebatch.errors import CorebatchError, InputError
from corebatch.model.modes import evaluating
from corebatch.scoring import Scores
from corebatch.seeds import seeded
from corebatch.trainer.auto import AUTO
from corebatch.trainer.config import CoresetConfig

LEVER = "choice of rows"
POOL, DRAWS = 4, 400
SCORED, REMEMBERED = (
    {"scorer": NORMS, "scoring": "full"},
    {"scorer": "gradient_norm", "scoring": "remembered"},
)
BY_COST = {"selector_options": {"cost_power": 0.5}}
DEFAULT = "by label counts, errors carried"
ARMS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {"scorer": AUTO, "selector": AUTO, "feedback": AUTO},
    "by trained tokens": {"scorer": "tokens"},
    "by trained tokens and cost": {"scorer": "tokens", **BY_COST},
    "by gradient norms": SCORED,
    "by remembered gradient norms": REMEMBERED,
    "by remembered gradient norms and cost": {**REMEMBERED, **BY_COST},
}
"""Ways to choose: what a config that says nothing of it has, and some in which rows are included independently, or
nearly; settings of `coreset`."""
ALONE: Mapping[str, Any] = {
    "selector": "importance", "scorer_options": {}, "selector_options": {}, "normalise": None, "sparsify": None,
    "small_sources": None, "small_sources_cap": None, "feedback": AUTO, "scoring": AUTO, "target": None,
}  # fmt: skip
"""What else a config may say of choosing, and these ways do not have."""


def measure(probe: Probe) -> list[Finding]:
    """A finding for each way of choosing, against the config as it is; where that chooses, one for not choosing.

    At most one is recommended: the best, if it pays surely, and not by better filled micro-batches alone.
    """
    coreset = probe.settings.coreset
    try:
        for name in ("sampling", "by_length", "replay"):
            if getattr(coreset, name) is not None:
                raise InputError(f"coreset.{name} decides as well which rows a step has")
        bench = _Choosing.of(probe)
    except CorebatchError as error:
        return [Finding(lever=LEVER, of=TO_LOSS, unmeasured=str(error))]
    ways = {name: {**ALONE, "pool_factor": bench.pool, **each} for name, each in ARMS.items()}
    found = [bench.finding(name, each) for name, each in ways.items() if coreset.changed(**each) != coreset]
    if coreset.pool_factor > 1:
        found.insert(0, bench.finding("none", {"pool_factor": 1, "micro_batches": coreset.cut.plain()}))
    return gain(found, "of_choosing_high")


@dataclass(frozen=True, kw_only=True)
class _Pools:
    """What a way chooses out of.

    Attributes:
        population: the rows of the pools; those with gradients come first.
        series: the pools.
        budget: rows that are chosen of each.
        scores: of the rows, by the forwards that gave them.
    """

    population: Population
    series: Series
    budget: int
    scores: dict[str, Scores] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Choosing:
    """What all ways are measured on.

    Attributes:
        pool: rows that are drawn for one that is trained.
        costs: of scoring and training, in forwards.
        alone: for ways that choose each step by itself; pools of the size that the gradients allow.
        before: the config as it is, and the same if plain rows were sorted into micro-batches as chosen ones are.
    """

    probe: Probe
    rows: RowGradients
    pool: int
    costs: Costs
    alone: _Pools
    before: list[Arrival]

    @classmethod
    def of(cls, probe: Probe) -> _Choosing:
        """Raises CorebatchError: as `row_gradients`; a choice of the config's own that cannot be measured."""
        rows, coreset = row_gradients(probe), probe.settings.coreset
        pool, count = coreset.pool_factor if coreset.pool_factor > 1 else POOL, len(rows.sizes)
        budget = min(probe.batch_size, count // (2 * pool))
        if budget < 1:
            raise InputError(f"pools of {pool} rows for one need the gradients of {2 * pool}. Found {count}")
        own, by_norms = _method(coreset), _method(coreset.changed(pool_factor=pool, **{**ALONE, **SCORED}))
        timed = [own] * (coreset.pool_factor > 1) + [by_norms] * (not isinstance(rows.norms, str))
        with weights_kept(probe.model, rows.state), probe.autocast():
            some = max(8, min(32, int(probe.seconds_left / (45 * rows.seconds))))  # about a third of the time
            costs = measure_costs(probe.model, rows.population, timed, rows=some, rounds=2, seed=probe.seed)
        width = int(probe.args.per_device_train_batch_size)
        series = Series.of(count, pool * budget, DRAWS, probe.seed, warm_up=2 * WINDOW, micro_batch=width)
        alone = _Pools(population=rows.population, series=series, budget=budget)
        bench = cls(probe=probe, rows=rows, pool=pool, costs=costs, alone=alone, before=[])
        if coreset.pool_factor > 1:
            bench.before.extend([bench.chosen(_method(coreset, rows.steps))] * 2)
        else:
            bench.before.extend(plain(bench.plain_cost(sort), count) for sort in (coreset.cut.regroups, True))
        return bench

    def finding(self, name: str, changes: Mapping[str, Any]) -> Finding:
        """Of settings that choose, or with pool_factor 1 of not choosing."""
        coreset, lever = self.probe.settings.coreset, f"{LEVER}: {name}"
        try:
            if self.probe.seconds_left <= 0:
                raise InputError(f"no time was left: {MORE_MINUTES}")
            made = coreset.changed(**changes)
            if changes["pool_factor"] > 1:
                way = self.chosen(_method(made, self.rows.steps))
            else:
                way = plain(self.plain_cost(made.cut.regroups), len(self.rows.sizes))
            batch = self.probe.batch_size
            found, alike = (worth(way, each, self.rows, batch) for each in self.before)
        except CorebatchError as error:
            return Finding(lever=lever, of=TO_LOSS, unmeasured=str(error))
        cost, choosing = (each / self.before[0].cost for each in (way.cost, way.choosing))
        told = f"{found.why(batch)}; a step costs {cost:.2f} times as much, {choosing:.2g} for choosing itself; "
        told += f"better filled micro-batches aside the factor is {alike.factor:.2f} "
        told += f"({alike.low:.2f} to {alike.high:.2f})"
        if batch > max(found.scale, found.raw_scale) and alike.high >= LEAST:
            told += "; it does not pay: the batch is above the noise scale"
        return Finding(
            lever=lever, arm=_keys(coreset, changes), factor=found.factor, low=found.low, high=found.high, of=TO_LOSS,
            why=told,
            numbers={
                **found.numbers(batch), "cost": cost, "choosing": choosing, "of_choosing": alike.factor,
                "of_choosing_low": alike.low, "of_choosing_high": alike.high, "rows_measured": len(self.rows.sizes),
                "steps_before": self.rows.steps,
            },
        )  # fmt: skip

    def chosen(self, method: Method) -> Arrival:
        """A way to choose, seen in a series of steps. Raises CorebatchError: the model has not what it goes by."""
        rows, model = self.rows, self.probe.model
        if method.scorer == NORMS and isinstance(rows.norms, str):
            raise InputError(rows.norms)
        memory = rows.norms if method.remembered is not None and not isinstance(rows.norms, str) else None
        pools = self.carrying(method) if method.others.get("feedback") is not None else self.alone
        series, budget, counted = pools.series, pools.budget, 0.0
        with weights_kept(model, rows.state), evaluating(model), self.probe.autocast():
            chooses = chooses_of(
                method, rows.snapshot, pools.population, series.pools_TN[0], budget, memory, pools.scores,
                self.probe.seed,
            )  # fmt: skip
            if chooses.scores is not None and not (arm := chooses.make()).runs_forwards:
                chooses = replace(chooses, scores=pools.scores[method.forward])  # as wide as a step has them
                counted = 1000 * _seconds(partial(arm.score, model)) / len(pools.population) * self.pool * budget
            seen = chooses.of(series, budget)
        paid = prices(method, seen, self.costs, large=self.pool * budget, budget=budget)
        lengths, plain_pools = rows.population.lengths, self.alone.series.pools_TN[:100]
        of_pool = sum(positions(lengths[pool], series.micro_batch) for pool in plain_pools) / plain_pools.numel()
        c = self.costs.training.value
        choosing = (seen.select_ms + counted) / (self.costs.forward_ms * c * budget)
        cost = paid.cost(paid.positions * of_pool / float(lengths.double().mean()), c) / budget + choosing
        return chosen(cost, seen.coefficients_TP - series.large_TP, budget, self.pool, rows.metrics, choosing)

    def carrying(self, method: Method) -> _Pools:
        """For a way that carries its errors. What a row is owed is made up for when it comes again, and by few rows all
        that a choice is off by; so no row comes twice in a WINDOW unless it does in the run. That takes many rows: all
        that the sample has where no forward is run for them, of which those with gradients tell.

        Raises:
            InputError: too few rows.
        """
        probe, rows, pool = self.probe, self.rows, self.pool
        steps = len(probe.mixture.dataset) / (probe.batch_size * pool)
        each = max(2, min(WINDOW, int(steps)))
        most = len(rows.sizes) if method.build()[0].needs_forward else len(probe.sample)
        budget = min(probe.batch_size, most // (pool * each))
        if budget < 1:
            raise InputError(f"{each} pools of {pool} rows for one need {pool * each} rows. Found {most}")
        population = population_of(probe, len(rows.sizes), pool * budget * each)
        series = Series.of(
            len(population), pool * budget, DRAWS, probe.seed, warm_up=2 * WINDOW,
            micro_batch=self.alone.series.micro_batch, most=each,
        )  # fmt: skip
        run = probe.args.max_steps if probe.args.max_steps > 0 else probe.args.num_train_epochs * steps
        return _Pools(population=population, series=series.within(steps, run, each), budget=budget)

    def plain_cost(self, sort: bool) -> float:
        """Of a row in a step of plain rows, in trainings of one row of mean length without padding."""
        lengths, width = self.rows.population.lengths, self.alone.series.micro_batch
        batch = min(self.probe.batch_size, len(lengths))
        total = 0
        for number in range(100):
            order = torch.randperm(len(lengths), generator=seeded(self.probe.seed, "plain", number))[:batch]
            own = [lengths[order]] if sort else lengths[order].split(width)
            total += sum(positions(part, width) for part in own)
        return total / (100 * batch) / float(lengths.double().mean())


def _seconds(work: Callable[[], Any], rounds: int = 3) -> float:
    """The least of some: what else the machine does only adds."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


def _method(coreset: CoresetConfig, age: int = 0) -> Method:
    """What is chosen by the settings; features that are remembered are of so many steps ago."""
    block = {key: value for key, value in coreset.to_dict().items() if key != "source_column"}
    method = parse_method({"name": "a choice", "coreset": block})
    return replace(
        method,
        way=replace(method.way, options={**method.way.options, "age": age})
        if method.way.age is not None
        else method.way,
    )


def _keys(coreset: CoresetConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The config's keys that the changes set, without those that say what is so already."""
    found = {}
    for key, value in changes.items():
        same = value == getattr(coreset, key) or (value == AUTO and key in coreset.automatic)
        if not same or key == "pool_factor":
            found[f"coreset.{key}"] = "none" if value is None else value
    return found
