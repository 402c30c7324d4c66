"""What choosing the rows of a step is worth on this run: inclusion by tokens, by lengths of gradients, by cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from corebatch.bench.advise.finding import MORE_MINUTES, TO_LOSS, Finding
from corebatch.bench.advise.probe import Probe
from corebatch.bench.advise.row_gradients import NORMS, RowGradients, row_gradients, weights_kept
from corebatch.bench.advise.worth import WINDOW, Arrival, chosen, gain, plain, worth
from corebatch.bench.gradients.costs import Costs, measure_costs
from corebatch.bench.gradients.estimate import chooses_of
from corebatch.bench.gradients.methods import Method
from corebatch.bench.gradients.parsing import parse_method
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
ARMS: Mapping[str, Mapping[str, Any]] = {
    "by trained tokens": {"scorer": "tokens"},
    "by trained tokens and cost": {"scorer": "tokens", **BY_COST},
    "by gradient norms": SCORED,
    "by remembered gradient norms": REMEMBERED,
    "by remembered gradient norms and cost": {**REMEMBERED, **BY_COST},
}
"""Ways to choose in which rows are included independently, or nearly; settings of `coreset`."""
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
    found = [bench.finding(name, {**ALONE, "pool_factor": bench.pool, **each}) for name, each in ARMS.items()]
    if coreset.pool_factor > 1:
        found.insert(0, bench.finding("none", {"pool_factor": 1, "micro_batches": coreset.cut.plain()}))
    return gain(found, "of_choosing_high")


@dataclass(frozen=True, kw_only=True)
class _Choosing:
    """What all ways are measured on.

    Attributes:
        costs: of scoring and training, in forwards.
        series: pools of the size that the rows allow, and of each so many rows are chosen (`budget`).
        scores: of the rows, by the forwards that gave them.
        before: the config as it is, and the same if plain rows were sorted into micro-batches as chosen ones are.
    """

    probe: Probe
    rows: RowGradients
    pool: int
    budget: int
    costs: Costs
    series: Series
    scores: dict[str, Scores]
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
        bench = cls(
            probe=probe, rows=rows, pool=pool, budget=budget, costs=costs, series=series, scores={}, before=[]
        )  # fmt: skip
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
        cost = way.cost / self.before[0].cost
        return Finding(
            lever=lever, arm=_keys(coreset, changes), factor=found.factor, low=found.low, high=found.high, of=TO_LOSS,
            why=f"{found.why(batch)}; a step costs {cost:.2f} times as much; of that choosing itself, better filled "
            f"micro-batches aside, is {alike.factor:.2f} ({alike.low:.2f} to {alike.high:.2f})",
            numbers={
                **found.numbers(batch), "cost": cost, "of_choosing": alike.factor, "of_choosing_low": alike.low,
                "of_choosing_high": alike.high, "rows_measured": len(self.rows.sizes), "steps_before": self.rows.steps,
            },
        )  # fmt: skip

    def chosen(self, method: Method) -> Arrival:
        """A way to choose, seen in a series of steps. Raises CorebatchError: the model has not what it goes by."""
        rows, series = self.rows, self.series
        if method.scorer == NORMS and isinstance(rows.norms, str):
            raise InputError(rows.norms)
        memory = rows.norms if method.remembered is not None and not isinstance(rows.norms, str) else None
        with weights_kept(self.probe.model, rows.state), evaluating(self.probe.model), self.probe.autocast():
            chooses = chooses_of(
                method, rows.snapshot, rows.population, series.pools_TN[0], self.budget, memory, self.scores,
                self.probe.seed,
            )  # fmt: skip
            seen = chooses.of(series, self.budget)
        paid = prices(method, seen, self.costs, large=self.pool * self.budget, budget=self.budget)
        lengths, pools = rows.population.lengths, series.pools_TN
        of_pool = sum(positions(lengths[pool], series.micro_batch) for pool in pools[:100]) / pools[:100].numel()
        c = self.costs.training.value
        cost = paid.cost(paid.positions * of_pool / float(lengths.double().mean()), c) / self.budget
        cost += seen.select_ms / (self.costs.forward_ms * c * self.probe.batch_size)
        return chosen(cost, seen.coefficients_TP - series.large_TP, self.budget, self.pool, rows.metrics)

    def plain_cost(self, sort: bool) -> float:
        """Of a row in a step of plain rows, in trainings of one row of mean length without padding."""
        lengths, width = self.rows.population.lengths, self.series.micro_batch
        batch = min(self.probe.batch_size, len(lengths))
        total = 0
        for number in range(100):
            order = torch.randperm(len(lengths), generator=seeded(self.probe.seed, "plain", number))[:batch]
            own = [lengths[order]] if sort else lengths[order].split(width)
            total += sum(positions(part, width) for part in own)
        return total / (100 * batch) / float(lengths.double().mean())


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
