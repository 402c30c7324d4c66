"""Runs a search: the opening, what is proposed after it, and the whole runs that measure what was found. Every run is a
line on the disk at once, and what has its line is not done again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from corebatch.bench.runs.folder import alone, append, begin, read_lines
from corebatch.bench.runs.jobs import outcome
from corebatch.bench.runs.processes import Processes
from corebatch.bench.runs.progress import progress
from corebatch.bench.search.bayes import Found, Trial, best, opening, propose
from corebatch.bench.search.job import TrialJob
from corebatch.bench.search.settings import SearchSettings
from corebatch.errors import CorebatchError

TRIALS, BEGUN = "trials.jsonl", "mixture_search.json"
REST = "(all others)"
"""What stands for the sources that are not searched for, as one."""
MEASURED = ("own", "equal", "found")
"""The shares of the whole runs in the end."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched for.

    Attributes:
        names: of the shares, REST last where some sources are not searched for.
        own: the data's shares of rows, in this order.
        steps: of a whole run.
        values: the config as it was read, to know a search again.
        folder: where everything goes.
    """

    settings: SearchSettings
    names: Sequence[str]
    own: Sequence[float]
    steps: int
    values: Mapping[str, Any]
    folder: Path
    workers: Processes
    console: Console

    def named(self, shares: Sequence[float]) -> dict[str, float]:
        """As `coreset.sampling.shares` has them."""
        return {name: share for name, share in zip(self.names, shares, strict=True) if name != REST}

    @property
    def equal(self) -> tuple[float, ...]:
        """Of what is searched for, each alike."""
        return opening(self.own, [1.0], 0)[1].shares


def search(setup: Search) -> tuple[Found, list[dict[str, Any]]]:
    """Runs what is missing in the folder: what was found, and all lines of trials.jsonl.

    Raises:
        ConfigError: the folder holds something else, or another process is at work there.
        CorebatchError: no run has come to a loss.
        MissingExtraError: BoTorch is not installed.
    """
    settings = setup.settings
    costs = [each.cost for each in settings.fidelities]
    with alone(setup.folder), setup.workers:
        begin(setup.values, setup.folder, {}, what="search for shares", name=BEGUN)
        done: list[Trial] = []
        batch = opening(setup.own, costs, settings.seed)[: settings.trials]
        while batch:
            done += _trained(setup, batch, len(done))
            left = settings.trials - len(done)
            batch = propose(_usable(done), costs, min(left, settings.processes), settings.seed + len(done))
            batch = batch[:left]
        found = best(_usable(done), [setup.own, setup.equal], settings.seed)
        shares = dict(zip(MEASURED, (setup.own, setup.equal, found.shares), strict=True))
        _measured(setup, shares)
        return found, read_lines(setup.folder / TRIALS)


def _usable(done: Sequence[Trial]) -> Sequence[Trial]:
    if not any(each.value is not None for each in done):
        raise CorebatchError("No run of the search has come to a loss that is finite: trials.jsonl says why.")
    return done


def _trained(setup: Search, batch: Sequence[Trial], first: int) -> list[Trial]:
    """The runs with what they came to; those that have their line are not made again."""
    fidelities = {each.cost: each for each in setup.settings.fidelities}
    jobs = {}
    for number, each in enumerate(batch, first):
        fidelity = fidelities[each.cost]
        jobs[number] = TrialJob(
            number=number,
            shares=setup.named(each.shares),
            steps=setup.settings.steps_of(fidelity, setup.steps),
            seed=setup.settings.seed,
            model_name_or_path=fidelity.model_name_or_path,
        )
    about = {number: {"kind": "trial", "cost": each.cost} for number, each in enumerate(batch, first)}
    lines = _lines(setup, jobs, about, f"runs {first + 1} to {first + len(batch)} of {setup.settings.trials}")
    return [
        Trial(shares=each.shares, cost=each.cost, value=lines[number]["value"])
        for number, each in enumerate(batch, first)
    ]


def _measured(setup: Search, shares: Mapping[str, Sequence[float]]) -> None:
    """Whole runs, on rows and with a seed that the search has not seen."""
    first, seed = setup.settings.trials, setup.settings.seed + 1
    jobs = {
        number: TrialJob(number=number, shares=setup.named(each), steps=setup.steps, seed=seed, held_out="final")
        for number, each in enumerate(shares.values(), first)
    }
    about = {number: {"kind": "measured", "name": name, "cost": 1.0} for number, name in enumerate(shares, first)}
    _lines(setup, jobs, about, "measuring what was found")


def _lines(
    setup: Search, jobs: Mapping[int, TrialJob], about: Mapping[int, Mapping[str, Any]], title: str
) -> dict[int, dict[str, Any]]:
    """The line of each job by its number; what failed is tried again when the command is run again."""
    path = setup.folder / TRIALS
    lines = {line["number"]: line for line in read_lines(path) if line["status"] == "ok"}
    missing = [job for number, job in jobs.items() if number not in lines]
    if missing:
        with setup.workers.all() as each, progress(setup.console, title, len(missing)) as tick:
            for job, found in each(missing):
                line = _line(setup, job, found, about[job.number])
                append(path, line)
                lines[job.number] = line
                shares = ", ".join(f"{name} {share:.3g}" for name, share in job.shares.items())
                told = line["error"] if line["status"] != "ok" else f"{line['value']}"
                tick(f"{job.steps} steps with {shares}: {told}")
    return lines


def _line(setup: Search, job: TrialJob, found: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    """A run's line in trials.jsonl."""
    made = outcome(found)
    value = setup.settings.value(made["losses"]) if made["status"] == "ok" else None
    return {
        **about,
        "number": job.number,
        "shares": dict(job.shares),
        "steps": job.steps,
        "seed": job.seed,
        "model_name_or_path": job.model_name_or_path,
        "value": value if value is not None and math.isfinite(value) else None,
        **made,
    }
