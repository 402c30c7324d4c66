"""Runs a comparison: times the arms side by side, fixes their steps, tunes, trains. Every result is a line on the disk
at once, and what has its line is not done again."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from corebatch.bench.runs.arms import REFERENCE, Arm, by_method
from corebatch.bench.runs.comparison import Promise
from corebatch.bench.runs.costs import MethodCost
from corebatch.bench.runs.folder import PLAN, RUNS, SUBSETS, alone, append, begin, read_lines
from corebatch.bench.runs.jobs import RunJob, SubsetRowsJob, outcome
from corebatch.bench.runs.processes import Processes
from corebatch.bench.runs.progress import progress
from corebatch.bench.runs.settings import CompareSettings
from corebatch.bench.runs.subsets import seconds_of
from corebatch.bench.runs.timing_rounds import MORE, TIMING_SHARE, Timing
from corebatch.bench.runs.tuning import Spend, Tuned, candidates, tune
from corebatch.errors import ConfigError
from corebatch.files import write_json
from corebatch.record.provenance import provenance

LEAST_STEPS = 20
QUICK_SHARE = 0.6
"""Of a quick comparison's minutes after timing, the part that steps may take; the rest is evaluation and starts."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is compared.

    Attributes:
        arms: the reference first.
        steps: of the reference.
        rows: of the train set.
        values: the config as it was read, for the record and to know a comparison again.
        folder: where everything goes.
        metric: the held-out mean that the reference's objective is about.
        shares: of the sources, by the name of each mean that has shares of its own.
        promises, without_arm: see ComparisonPlan.
        quick: of a comparison within minutes: these, and the config's steps; `began`: when it was, by time.monotonic.
    """

    arms: Sequence[Arm]
    settings: CompareSettings
    steps: int
    rows: int
    learning_rate: float
    values: Mapping[str, Any]
    folder: Path
    workers: Processes
    console: Console
    metric: str
    shares: Mapping[str, Mapping[str, float]]
    promises: Sequence[Promise] = ()
    without_arm: Sequence[str] = ()
    quick: Mapping[str, Any] | None = None
    began: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def methods(self) -> dict[str, Arm]:
        """An arm of each method; its budget does not matter for what a step is."""
        return by_method(self.arms)


def compare(setup: Setup) -> None:
    """Runs what is missing in the folder. Raises ConfigError: it holds another comparison, or another process is at
    work there, or a budget buys no step."""
    with alone(setup.folder), setup.workers:
        costs, steps = costs_and_steps(setup)
        if setup.quick is not None:
            setup = fitted(setup, costs, steps)
            steps = planned_steps(setup, costs)
        spend, settings = spend_of(setup, costs, steps), setup.settings.tune
        tuned, spent = tune(settings, setup.learning_rate, spend, setup.folder, setup.workers, setup.console)
        write_plan(setup, costs, steps, tuned, spent)
        _run(setup, costs, steps, tuned)


def spend_of(setup: Setup, costs: Mapping[str, MethodCost], steps: Mapping[str, int]) -> Spend:
    """What tuning and runs take."""
    lengths = {method: tuning_steps(setup, method, steps) for method in setup.methods}
    seconds = {method: cost.seconds for method, cost in costs.items()}
    runs = sum(seconds[arm.method.name].of(steps[arm.name]) for arm in setup.arms)
    return Spend(lengths, seconds, len(setup.settings.seeds) * runs)


def fitted(setup: Setup, costs: Mapping[str, MethodCost], steps: Mapping[str, int]) -> Setup:
    """With as many steps as a quick comparison's minutes hold, at most the config's; those of its plan where it goes
    on. Raises ConfigError: they are fewer than `LEAST_STEPS` and than the config's."""
    assert setup.quick is not None
    plan = setup.folder / PLAN
    if plan.exists():
        return dataclasses.replace(setup, steps=int(json.loads(plan.read_text(encoding="utf-8"))["steps"]))
    spend, grid = spend_of(setup, costs, steps), len(candidates(setup.settings.tune, setup.learning_rate))
    whole = spend.after + spend.of_tuning(grid, setup.settings.tune.shortest)
    left = QUICK_SHARE * (60 * setup.quick["minutes"] - (time.monotonic() - setup.began)) * setup.workers.count
    found = int(setup.steps * min(1.0, max(0.0, left) / whole))
    if found < min(LEAST_STEPS, setup.steps):
        raise ConfigError(
            f"--quick should have time for {LEAST_STEPS} steps of {len(setup.arms)} arms with "
            f"{len(setup.settings.seeds)} seeds within {setup.quick['minutes']:g} minutes. Found time for {found}: "
            "take a smaller model, shorter rows, fewer arms or seeds, or the whole comparison, without --quick."
        )
    return dataclasses.replace(setup, steps=found)


def costs_and_steps(setup: Setup) -> tuple[dict[str, MethodCost], dict[str, int]]:
    """What a step of each method costs, timed where no lines tell it yet, and the steps of each arm."""
    begin(setup.values, setup.folder, {arm.name: arm.objective for arm in setup.arms})
    subsets = _choose_subsets(setup)
    rounds, quick = setup.settings.timing_rounds, {}
    if setup.quick is not None:
        minutes = setup.quick["minutes"]
        quick = {"counting": minutes, "until": setup.began + 60 * minutes * TIMING_SHARE}  # a second a minute
    begun = bool(read_lines(setup.folder / RUNS))  # more rounds would give its arms other steps
    timing = Timing(
        methods=setup.methods,
        folder=setup.folder,
        steps=setup.steps,
        rounds=rounds,
        most=rounds if setup.quick is not None or begun else MORE * rounds,
        epochs={
            name: (subsets[name]["rows"] if name in subsets else setup.rows) / arm.rows_drawn
            for name, arm in setup.methods.items()
        },
        before={name: seconds_of(line) for name, line in subsets.items()},
        **quick,
    )
    costs = timing.costs(setup.workers, setup.console)
    return costs, planned_steps(setup, costs)


def _choose_subsets(setup: Setup) -> dict[str, dict[str, Any]]:
    """The lines of subsets.jsonl by method: how many rows its arms train on, and what choosing them took."""
    done = {line["method"]: line for line in read_lines(setup.folder / SUBSETS)}
    missing = [name for name, arm in setup.methods.items() if arm.method.subset is not None and name not in done]
    if missing:
        with setup.workers.one() as run, progress(setup.console, "choosing subsets", len(missing)) as tick:
            for name in missing:
                done[name] = {"kind": "subset", "method": name, **run(SubsetRowsJob(method=name)), **provenance()}
                append(setup.folder / SUBSETS, done[name])
                tick(f"{name}: {done[name]['rows']:,} of {done[name]['of']:,} rows in {seconds_of(done[name]):.1f} s")
    return done


def planned_steps(setup: Setup, costs: Mapping[str, MethodCost]) -> dict[str, int]:
    """By arm: the most steps that its budget buys; never more than the reference spends. Raises ConfigError: not one
    step."""
    seconds, flops = (cost.of(setup.steps) for cost in (costs[REFERENCE].seconds, costs[REFERENCE].flops))
    steps = {}
    for arm in setup.arms:
        own = costs[arm.method.name]
        if arm.method.name == REFERENCE or arm.budget == "steps":
            steps[arm.name] = setup.steps
        else:
            steps[arm.name] = own.seconds.affords(seconds) if arm.budget == "wall_clock" else own.flops.affords(flops)
        if steps[arm.name] < 1:
            chosen = f", {own.seconds.before:.1f} s of it for choosing its rows" if own.seconds.before else ""
            raise ConfigError(
                f"The arm {arm.name} should afford at least one step of what {setup.steps} steps of the coreset "
                f"block cost, {seconds:.1f} s{chosen}. Found none; give max_steps more."
            )
    return steps


def tuning_steps(setup: Setup, method: str, steps: Mapping[str, int]) -> int:
    """A method is tuned once, for its longest run at equal wall-clock or its first arm's."""
    own = [arm for arm in setup.arms if arm.method.name == method]
    return steps[next((arm.name for arm in own if arm.budget == "wall_clock"), own[0].name)]


def write_plan(
    setup: Setup,
    costs: Mapping[str, MethodCost],
    steps: Mapping[str, int],
    tuned: Mapping[str, Tuned] | None = None,
    spent: int = 0,
    power: Mapping[str, Any] | None = None,
) -> None:
    """plan.json: what every run is allowed, before any of them. `tuned`: None before anything is, with the config's
    own rate. `power`: what its seeds will find; None keeps what the file has of it."""
    before = setup.folder / PLAN
    if power is None:
        power = json.loads(before.read_text(encoding="utf-8")).get("power", {}) if before.exists() else {}
    own = Tuned(setup.learning_rate, None, edge_of_grid=False, rungs=[])
    tuned = dict.fromkeys(setup.methods, own) if tuned is None else tuned
    arms = [_granted(arm, costs[arm.method.name], tuned[arm.method.name], steps[arm.name]) for arm in setup.arms]
    plan = {
        "reference": REFERENCE,
        "steps": setup.steps,
        "seconds": costs[REFERENCE].seconds.of(setup.steps),
        "flops": costs[REFERENCE].flops.of(setup.steps),
        "seeds": list(setup.settings.seeds),
        "train_rows": setup.rows,
        "metric": setup.metric,
        "shares": dict(setup.shares),
        **_promised(setup),
        "power": power,
        "quick": dict(setup.quick or {}),
        "arms": arms,
        "tuning": {
            **dataclasses.asdict(setup.settings.tune),
            "budget_steps": spent,
            "methods": {method: dataclasses.asdict(values) for method, values in tuned.items()},
        },
        "timing": {"pools": setup.settings.timing_pools, "rounds": setup.settings.timing_rounds},
        "settings": dict(setup.values),
        **provenance(),
    }
    write_json(before, plan)


def _granted(arm: Arm, cost: MethodCost, values: Tuned, steps: int) -> dict[str, Any]:
    """An arm's entry in plan.json."""
    return {
        "arm": arm.name,
        "method": arm.method.name,
        "budget": arm.budget,
        "title": arm.method.title,
        "baseline": arm.method.baseline and arm.budget == "wall_clock",
        "rows_drawn_per_step": arm.rows_drawn,
        "rows_trained_per_step": arm.rows_trained,
        "steps": steps,
        "preparation_seconds": cost.seconds.before,
        "positions": None if cost.positions is None else cost.positions.of(steps),
        "positions_spread": cost.spread,
        "seconds_error": cost.error,
        "seconds_per_step": [cost.seconds.first, cost.seconds.later],
        "flops_per_step": [cost.flops.first, cost.flops.later],
        "learning_rate": values.learning_rate,
        "adam_beta2": values.adam_beta2,
        "edge_of_grid": values.edge_of_grid,
        "objective": arm.objective,
        "coreset": arm.coreset.to_dict(),
        "training": dict(arm.method.training),
        "subset": None if arm.method.subset is None else dataclasses.asdict(arm.method.subset),
    }


def _promised(setup: Setup) -> dict[str, Any]:
    """What advice expects, or once there are runs what it expected before them: a promise is not changed after."""
    before = setup.folder / PLAN
    if before.exists() and read_lines(setup.folder / RUNS):
        plan = json.loads(before.read_text(encoding="utf-8"))
        return {key: plan[key] for key in ("promises", "without_arm") if key in plan}
    promises = [dataclasses.asdict(promise) for promise in setup.promises]
    return {"promises": promises, "without_arm": list(setup.without_arm)}


def _run(setup: Setup, costs: Mapping[str, MethodCost], steps: Mapping[str, int], tuned: Mapping[str, Tuned]) -> None:
    done = {(line["arm"], line["seed"]) for line in read_lines(setup.folder / RUNS) if line["status"] == "ok"}
    jobs = [
        RunJob(
            arm=arm,
            seed=seed,
            steps=steps[arm.name],
            learning_rate=tuned[arm.method.name].learning_rate,
            adam_beta2=tuned[arm.method.name].adam_beta2,
            seconds=costs[arm.method.name].seconds,
            flops=costs[arm.method.name].flops,
        )
        for seed in setup.settings.seeds
        for arm in setup.arms
        if (arm.name, seed) not in done
    ]
    if not jobs:
        return
    work = {(job.arm.name, job.seed): job.seconds.of(job.steps) for job in jobs}
    whole = sum(work.values())
    with setup.workers.all() as each, progress(setup.console, "training", len(jobs), whole) as tick:
        for job, found in each(jobs):
            line = _line(job, found)
            append(setup.folder / RUNS, line)
            text = f"{line['final'][setup.metric]:.4f}" if line["status"] == "ok" else line["error"]
            tick(f"{job.title}: {text}", work[job.arm.name, job.seed])


def _line(job: RunJob, found: Any) -> dict[str, Any]:
    """A run's line in runs.jsonl."""
    arm = job.arm
    return {
        "kind": "compare",
        "arm": arm.name,
        "method": arm.method.name,
        "budget": arm.budget,
        "seed": job.seed,
        "planned": {
            "steps": job.steps,
            "rows_drawn": job.steps * arm.rows_drawn,
            "rows_trained": job.steps * arm.rows_trained,
        },
        "learning_rate": job.learning_rate,
        "adam_beta2": job.adam_beta2,
        **outcome(found),
    }
