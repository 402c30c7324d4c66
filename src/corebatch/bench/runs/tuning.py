"""What each method trains with: successive halving of learning rates and Adam's beta2 (arXiv 1502.07943)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from corebatch.bench.runs.costs import StepCost
from corebatch.bench.runs.folder import TUNING, append, read_lines
from corebatch.bench.runs.jobs import TuneJob, outcome
from corebatch.bench.runs.processes import Processes
from corebatch.bench.runs.progress import progress
from corebatch.bench.runs.settings import TuneSettings


@dataclass(frozen=True)
class Candidate:
    """Values of what is tuned."""

    learning_rate: float
    adam_beta2: float | None


@dataclass(frozen=True, kw_only=True)
class Tuned(Candidate):
    """The values that won, and how they did.

    Attributes:
        edge_of_grid: whether the learning rate is the least or the greatest that was tried.
        rungs: for each length that was tried, its steps and the losses of all candidates that were left.
    """

    edge_of_grid: bool
    rungs: list[dict[str, Any]]


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


@dataclass
class _Race:
    """One method's candidates, of which one is left in the end. `plan`: by `rungs`."""

    method: str
    plan: list[tuple[int, int]]
    left: list[Candidate]
    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def spent(self) -> int:
        """Steps of all runs."""
        return sum(count * steps for count, steps in self.plan)

    def jobs(self, level: int, seed: int) -> list[TuneJob]:
        """A run of each candidate that is left; none behind the last level."""
        if level >= len(self.plan):
            return []
        steps = self.plan[level][1]
        return [TuneJob(method=self.method, steps=steps, seed=seed, **dataclasses.asdict(each)) for each in self.left]

    def halve(self, level: int, seed: int, scores: Mapping[TuneJob, Any]) -> None:
        """Keeps the better half; of the last level the best one."""
        jobs = self.jobs(level, seed)
        if not jobs:
            return
        losses = [
            {**dataclasses.asdict(each), "loss": scores.get(job)} for each, job in zip(self.left, jobs, strict=True)
        ]
        self.results.append({"steps": self.plan[level][1], "losses": losses})
        ranked = sorted(zip(self.left, jobs, strict=True), key=lambda pair: _finite(scores.get(pair[1])))
        kept = 1 if level + 1 == len(self.plan) else math.ceil(len(ranked) / 2)
        self.left = [each for each, _ in ranked[:kept]]


@dataclass(frozen=True)
class Spend:
    """What runs take. `lengths`: by method, the steps of the run that it is tuned for; `seconds`: of its steps;
    `after`: seconds of all runs that come after tuning."""

    lengths: Mapping[str, int]
    seconds: Mapping[str, StepCost]
    after: float

    def of_tuning(self, count: int, shortest: float) -> float:
        """Seconds of all tuning runs of so many candidates a method."""
        plans = {method: rungs(count, steps, shortest) for method, steps in self.lengths.items()}
        return sum(self.seconds[method].of(steps) * number for method, plan in plans.items() for number, steps in plan)


def tune(
    settings: TuneSettings,
    learning_rate: float,
    spend: Spend,
    folder: Path,
    workers: Processes,
    console: Console,
) -> tuple[dict[str, Tuned], int]:
    """By method, what won; and how many steps all of it took.

    Args:
        learning_rate: the config's own.
    """
    grid = candidates(settings, learning_rate)
    races = [
        _Race(name, rungs(len(grid), steps, settings.shortest), list(grid)) for name, steps in spend.lengths.items()
    ]
    total = sum(count for race in races for count, _ in race.plan)
    if total:
        work = spend.of_tuning(len(grid), settings.shortest)
        with workers.all() as each, progress(console, "tuning", total, work, spend.after) as tick:
            scores = _known(folder, settings.metric)
            for level in range(max(len(race.plan) for race in races)):
                jobs = [job for race in races for job in race.jobs(level, settings.seed)]
                missing = [job for job in jobs if job not in scores]
                for _ in range(len(jobs) - len(missing)):
                    tick(None, 0.0)
                for job, found in each(missing):
                    line = {"kind": "tuning", "method": job.method, **dataclasses.asdict(job), **outcome(found)}
                    append(folder / TUNING, line)
                    scores[job] = line.get(settings.metric)
                    text = f"{job.title}: {_loss_text(line, settings.metric)}"
                    tick(text, spend.seconds[job.method].of(job.steps))
                for race in races:
                    race.halve(level, settings.seed, scores)
    rates = sorted({each.learning_rate for each in grid})
    edges = (rates[0], rates[-1]) if settings.enabled and len(rates) > 1 else ()
    tuned = {
        race.method: Tuned(
            **dataclasses.asdict(race.left[0]), edge_of_grid=race.left[0].learning_rate in edges, rungs=race.results
        )
        for race in races
    }
    return tuned, sum(race.spent for race in races)


def _known(folder: Path, metric: str) -> dict[TuneJob, Any]:
    """The losses of runs that have their line; what failed is run again."""
    names = [each.name for each in dataclasses.fields(TuneJob)]
    lines = [line for line in read_lines(folder / TUNING) if line["status"] == "ok"]
    return {TuneJob(**{name: line[name] for name in names}): line.get(metric) for line in lines}


def _finite(loss: Any) -> float:
    """A candidate that failed or diverged is last."""
    return loss if isinstance(loss, int | float) and math.isfinite(loss) else math.inf


def _loss_text(line: Mapping[str, Any], metric: str) -> str:
    return f"{line[metric]:.4f}" if line["status"] == "ok" else str(line["error"])
