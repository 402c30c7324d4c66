"""Runs a comparison: times the arms side by side, fixes their steps, tunes, trains. Every result is a line on the disk
at once, and what has its line is not done again."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from corebatch.bench.runs.arms import REFERENCE, Arm
from corebatch.bench.runs.costs import StepCost, side_by_side
from corebatch.bench.runs.settings import CompareSettings, TuneSettings
from corebatch.errors import ConfigError
from corebatch.record.checkpoint import write_text
from corebatch.record.folder_lock import LOCK, OWNER, owned
from corebatch.record.provenance import provenance
from corebatch.text import terminal

PLAN, TIMING, TUNING, RUNS, BEGUN = "plan.json", "timing.jsonl", "tuning.jsonl", "runs.jsonl", "comparison.json"
FREE = ("processes", "devices", "threads", "seeds")
"""Keys of the compare block that may differ when a comparison goes on."""


class Workers(Protocol):
    """Processes that run jobs: mappings with `do` (time, flops, tune, run) and its arguments."""

    def one(self) -> AbstractContextManager[Any]:
        """A single process alone, for timing: `run(job) -> result`."""

    def all(self) -> AbstractContextManager[Any]:
        """All processes: `each(jobs)` gives (job, result) pairs as they end; a result may be an Exception."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is compared.

    Attributes:
        arms: the reference first.
        steps: of the reference.
        rows: of the train set.
        values: the config as it was read, for the record and to know a comparison again.
    """

    arms: Sequence[Arm]
    settings: CompareSettings
    steps: int
    rows: int
    learning_rate: float
    values: Mapping[str, Any]

    @property
    def methods(self) -> dict[str, Arm]:
        """An arm of each method; its budget does not matter for what a step is."""
        return {arm.method.name: arm for arm in reversed(self.arms)}


def compare(setup: Setup, folder: Path, workers: Workers, console: Console) -> None:
    """Runs what is missing in `folder`.

    Raises:
        ConfigError: the folder holds another comparison, or another process is at work there, or a budget buys no step.
    """
    with alone(folder):
        begin(setup, folder)
        _all(setup, folder, workers, console)


def _all(setup: Setup, folder: Path, workers: Workers, console: Console) -> None:
    times = _time(setup, folder, workers, console)
    costs = step_costs(setup, times)
    steps = planned_steps(setup, costs)
    chosen, spent = _tune(setup, folder, workers, console, steps)
    write_plan(setup, folder, costs, steps, chosen, spent)
    _run(setup, folder, workers, console, costs, steps, chosen)


def begin(setup: Setup, folder: Path) -> None:
    """Marks the folder as this comparison's, or checks that it is.

    Raises:
        ConfigError: it holds something else, or a comparison with other settings.
    """
    record = folder / BEGUN
    if not record.exists():
        there = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name] * folder.exists()
        if set(there) - {LOCK, OWNER}:
            raise ConfigError(
                f"output_dir: {folder} holds something else than a comparison, and nothing is overwritten."
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_text(record, json.dumps({"config": setup.values}, indent=1, default=str) + "\n")
        return
    before = json.loads(record.read_text(encoding="utf-8"))["config"]
    now = json.loads(json.dumps(setup.values, default=str))
    differ = [key for key in sorted({*before, *now}) if _fixed(key, before.get(key)) != _fixed(key, now.get(key))]
    if differ:
        found = "; ".join(f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in differ)
        raise ConfigError(
            f"output_dir: {folder} holds a comparison with other settings ({found}). Choose another folder."
        )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder for this comparison until it ends, however it ends.

    Raises:
        ConfigError: another process holds it, or this one does already.
    """
    with owned(folder, again=False):
        yield


def _fixed(key: str, value: Any) -> Any:
    if key == "compare" and isinstance(value, Mapping):
        return {inner: value[inner] for inner in value if inner not in FREE}
    return None if key == "output_dir" else value


# ---- time -----------------------------------------------------------------------------------------------------------


def _time(setup: Setup, folder: Path, workers: Workers, console: Console) -> list[dict[str, Any]]:
    """The lines of timing.jsonl: seconds of a step for each method in each round, and FLOPs once."""
    lines = read_lines(folder / TIMING)
    done = {(line["kind"], line["method"], line.get("round")) for line in lines}
    wanted: list[tuple[str, str, int | None]] = [("flops", method, None) for method in setup.methods]
    for number in range(setup.settings.timing_rounds):
        part: list[tuple[str, str, int | None]] = [("time", method, number) for method in setup.methods]
        # A round counts as a whole: its ratios are of one time of day.
        wanted += part if any(each not in done for each in part) else []
    missing = [each for each in wanted if each not in done or each[0] == "time"]
    if not missing:
        return lines
    with workers.one() as run, _progress(console, "timing the arms side by side", len(missing)) as tick:
        for kind, method, turn in missing:
            line = {
                "kind": kind,
                "method": method,
                "round": turn,
                **run({"do": kind, "method": method}),
                **provenance(),
            }
            lines.append(line)
            append(folder / TIMING, line)
            tick(f"{method}: {_cost_text(line)}")
    return lines


def _cost_text(line: Mapping[str, Any]) -> str:
    if line["kind"] == "flops":
        return f"{line['flops'][0] / 1e9:.1f} GFLOPs a step"
    return f"{line['seconds'][0]:.3f} s a step, later {line['seconds'][1]:.3f} s"


def step_costs(setup: Setup, lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, StepCost]]:
    """By method: its seconds and FLOPs."""
    latest = {(line["kind"], line["method"], line.get("round")): line for line in lines}
    seconds = side_by_side([line for line in latest.values() if line["kind"] == "time"], REFERENCE)
    flops = {line["method"]: line["flops"] for line in latest.values() if line["kind"] == "flops"}
    made = {}
    for method, arm in setup.methods.items():
        epoch = setup.rows / arm.rows_drawn
        made[method] = {
            "seconds": StepCost(first=seconds[method][0], later=seconds[method][1], epoch=epoch),
            "flops": StepCost(first=flops[method][0], later=flops[method][1], epoch=epoch),
        }
    return made


def planned_steps(setup: Setup, costs: Mapping[str, Mapping[str, StepCost]]) -> dict[str, int]:
    """By arm: the most steps that its budget buys; never more than the reference spends.

    Raises:
        ConfigError: not one step.
    """
    seconds, flops = (costs[REFERENCE][kind].of(setup.steps) for kind in ("seconds", "flops"))
    steps = {}
    for arm in setup.arms:
        own = costs[arm.method.name]
        if arm.method.name == REFERENCE or arm.budget == "steps":
            steps[arm.name] = setup.steps
        else:
            steps[arm.name] = (
                own["seconds"].affords(seconds) if arm.budget == "wall_clock" else own["flops"].affords(flops)
            )
        if steps[arm.name] < 1:
            raise ConfigError(
                f"The arm {arm.name} should afford at least one step of what {setup.steps} steps of the coreset "
                "block cost. Found none; give max_steps more."
            )
    return steps


# ---- tuning ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """Values of what is tuned."""

    learning_rate: float
    adam_beta2: float | None


def candidates(tune: TuneSettings, learning_rate: float) -> list[Candidate]:
    """All pairs of the grid; the config's own values alone where tuning is off."""
    if not tune.enabled:
        return [Candidate(learning_rate, None)]
    rates = tune.learning_rates or tuple(float(f"{learning_rate * factor:.6g}") for factor in tune.factors)
    return [Candidate(rate, beta) for rate in rates for beta in tune.adam_beta2 or (None,)]


def rungs(count: int, steps: int, shortest: float) -> list[tuple[int, int]]:
    """Successive halving: (how many candidates, steps of each) until one candidate is left or a rung has all steps."""
    made = []
    share = shortest
    while count > 1:
        made.append((count, max(1, math.ceil(steps * min(share, 1.0)))))
        if share >= 1:
            break
        count, share = math.ceil(count / 2), share * 2
    return made


def _tune(
    setup: Setup, folder: Path, workers: Workers, console: Console, steps: Mapping[str, int]
) -> tuple[dict[str, dict[str, Any]], int]:
    """By method: the values that won, and how they did; and how many steps all of it took."""
    tune = setup.settings.tune
    grid = candidates(tune, setup.learning_rate)
    lines = read_lines(folder / TUNING)
    scores = {_key(line): line.get(tune.metric) for line in lines if line["status"] == "ok"}
    left = {method: list(grid) for method in setup.methods}
    lengths = {method: _tuning_steps(setup, method, steps) for method in setup.methods}
    plans = {method: rungs(len(grid), lengths[method], tune.shortest) for method in left}
    total = sum(count for plan in plans.values() for count, _ in plan)
    spent = sum(count * length for plan in plans.values() for count, length in plan)
    results: dict[str, list[dict[str, Any]]] = {method: [] for method in left}
    if total:
        with workers.all() as each, _progress(console, "tuning", total) as tick:
            for level in range(max(len(plan) for plan in plans.values())):
                jobs = [
                    {
                        "do": "tune",
                        "method": method,
                        "steps": plans[method][level][1],
                        "seed": tune.seed,
                        **dataclasses.asdict(candidate),
                    }
                    for method in left
                    if level < len(plans[method])
                    for candidate in left[method]
                ]
                missing = [job for job in jobs if _key(job) not in scores]
                for job in jobs:
                    if job not in missing:
                        tick(None)
                for job, found in each(missing):
                    line = {"kind": "tuning", **{k: v for k, v in job.items() if k != "do"}, **_outcome(found)}
                    append(folder / TUNING, line)
                    scores[_key(job)] = line.get(tune.metric)
                    tick(f"{job['method']}, learning rate {job['learning_rate']:g}: {_loss_text(line, tune.metric)}")
                for method in left:
                    if level < len(plans[method]):
                        length = plans[method][level][1]
                        ranked = sorted(left[method], key=lambda c: _score(scores, method, length, tune.seed, c))
                        results[method].append(
                            {
                                "steps": length,
                                "losses": [
                                    {
                                        **dataclasses.asdict(c),
                                        "loss": scores.get(_key(_identity(method, length, tune.seed, c))),
                                    }
                                    for c in left[method]
                                ],
                            }
                        )
                        last = level + 1 == len(plans[method])
                        left[method] = ranked[: 1 if last else math.ceil(len(ranked) / 2)]
    rates = sorted({c.learning_rate for c in grid})
    chosen = {}
    for method, best in left.items():
        edge = tune.enabled and len(rates) > 1 and best[0].learning_rate in (rates[0], rates[-1])
        chosen[method] = {**dataclasses.asdict(best[0]), "edge_of_grid": edge, "rungs": results[method]}
    return chosen, spent


def _tuning_steps(setup: Setup, method: str, steps: Mapping[str, int]) -> int:
    """A method is tuned once, for its longest run at equal wall-clock or its first arm's."""
    own = [arm for arm in setup.arms if arm.method.name == method]
    return steps[next((arm.name for arm in own if arm.budget == "wall_clock"), own[0].name)]


def _identity(method: str, steps: int, seed: int, candidate: Candidate) -> dict[str, Any]:
    return {"method": method, "steps": steps, "seed": seed, **dataclasses.asdict(candidate)}


def _key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line[key] for key in ("method", "steps", "seed", "learning_rate", "adam_beta2"))


def _score(scores: Mapping[Any, Any], method: str, steps: int, seed: int, candidate: Candidate) -> float:
    """A candidate that failed or diverged is last."""
    loss = scores.get(_key(_identity(method, steps, seed, candidate)))
    return loss if isinstance(loss, int | float) and math.isfinite(loss) else math.inf


def _loss_text(line: Mapping[str, Any], metric: str) -> str:
    return f"{line[metric]:.4f}" if line["status"] == "ok" else str(line["error"])


# ---- the plan and the runs ------------------------------------------------------------------------------------------


def write_plan(
    setup: Setup,
    folder: Path,
    costs: Mapping[str, Mapping[str, StepCost]],
    steps: Mapping[str, int],
    chosen: Mapping[str, Mapping[str, Any]],
    spent: int,
) -> None:
    """plan.json: what every run is allowed, before any of them."""
    tune = setup.settings.tune
    arms = []
    for arm in setup.arms:
        cost, values = costs[arm.method.name], chosen[arm.method.name]
        arms.append(
            {
                "arm": arm.name,
                "method": arm.method.name,
                "budget": arm.budget,
                "title": arm.method.title,
                "baseline": arm.method.baseline and arm.budget == "wall_clock",
                "rows_drawn_per_step": arm.rows_drawn,
                "rows_trained_per_step": arm.rows_trained,
                "steps": steps[arm.name],
                "seconds_per_step": [cost["seconds"].first, cost["seconds"].later],
                "flops_per_step": [cost["flops"].first, cost["flops"].later],
                "learning_rate": values["learning_rate"],
                "adam_beta2": values["adam_beta2"],
                "edge_of_grid": values["edge_of_grid"],
                "coreset": arm.coreset.to_dict(),
                "training": dict(arm.method.training),
            }
        )
    plan = {
        "reference": REFERENCE,
        "steps": setup.steps,
        "seconds": costs[REFERENCE]["seconds"].of(setup.steps),
        "flops": costs[REFERENCE]["flops"].of(setup.steps),
        "seeds": list(setup.settings.seeds),
        "train_rows": setup.rows,
        "arms": arms,
        "tuning": {
            **dataclasses.asdict(tune),
            "budget_steps": spent,
            "methods": {method: dict(values) for method, values in chosen.items()},
        },
        "timing": {"pools": setup.settings.timing_pools, "rounds": setup.settings.timing_rounds},
        "settings": dict(setup.values),
        **provenance(),
    }
    write_text(folder / PLAN, json.dumps(plan, indent=1, default=str) + "\n")


def _run(
    setup: Setup,
    folder: Path,
    workers: Workers,
    console: Console,
    costs: Mapping[str, Mapping[str, StepCost]],
    steps: Mapping[str, int],
    chosen: Mapping[str, Mapping[str, Any]],
) -> None:
    done = {(line["arm"], line["seed"]) for line in read_lines(folder / RUNS) if line["status"] == "ok"}
    jobs = []
    for seed in setup.settings.seeds:
        for number, arm in enumerate(setup.arms):
            if (arm.name, seed) not in done:
                cost, values = costs[arm.method.name], chosen[arm.method.name]
                jobs.append(
                    {
                        "do": "run",
                        "number": number,
                        "arm": arm.name,
                        "method": arm.method.name,
                        "budget": arm.budget,
                        "seed": seed,
                        "steps": steps[arm.name],
                        "learning_rate": values["learning_rate"],
                        "adam_beta2": values["adam_beta2"],
                        "seconds": dataclasses.asdict(cost["seconds"]),
                        "flops": dataclasses.asdict(cost["flops"]),
                    }
                )
    if not jobs:
        return
    with workers.all() as each, _progress(console, "training", len(jobs)) as tick:
        for job, found in each(jobs):
            arm = setup.arms[job["number"]]
            line = {
                "kind": "compare",
                **{key: job[key] for key in ("arm", "method", "budget", "seed")},
                "planned": {
                    "steps": job["steps"],
                    "rows_drawn": job["steps"] * arm.rows_drawn,
                    "rows_trained": job["steps"] * arm.rows_trained,
                },
                "learning_rate": job["learning_rate"],
                "adam_beta2": job["adam_beta2"],
                **_outcome(found),
            }
            append(folder / RUNS, line)
            text = f"{line['final']['token']:.4f}" if line["status"] == "ok" else line["error"]
            tick(f"{job['arm']}, seed {job['seed']}: {text}")


def _outcome(found: Any) -> dict[str, Any]:
    if isinstance(found, Exception):
        return {"status": "failed", "error": str(found), **provenance()}
    return {"status": "ok", **found}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; one that a killed comparison did not finish is cut off."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    return [json.loads(line) for line in whole.splitlines() if line.strip()]


def append(path: Path, line: Mapping[str, Any]) -> None:
    """A line in one write."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, default=str) + "\n")


class _Tick:
    def __init__(self, bar: Progress, job: Any, console: Console) -> None:
        self.bar, self.job, self.console = bar, job, console

    def __call__(self, text: str | None) -> None:
        self.bar.advance(self.job)
        if text is not None:
            self.console.print(terminal(text))


class _progress:
    """A bar, and a line for each job that ended."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.title, self.total, self.console = title, total, console

    def __enter__(self) -> _Tick:
        self.console.print(terminal(self.title, "bold"), terminal(f": {self.total} runs"), sep="")
        self.bar.start()
        return _Tick(self.bar, self.bar.add_task(self.title, total=self.total), self.console)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
