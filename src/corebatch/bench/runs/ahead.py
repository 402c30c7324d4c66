"""What a comparison will cost and what it will find, told before its first run: `corebatch compare CONFIG --plan`.

Arms are timed side by side as always, and what was timed is kept for the comparison. How much pairs of runs differ from
seed to seed is read from runs that are there, or from an earlier comparison, else from pilots: a run of every arm with
two seeds that the comparison does not have, at the config's own rates. Pilots decide on seeds and rows alone, and are
in no test.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corebatch.bench.runs import format as words
from corebatch.bench.runs.arms import REFERENCE
from corebatch.bench.runs.costs import MethodCost
from corebatch.bench.runs.engine import Setup, costs_and_steps, spend_of, write_plan
from corebatch.bench.runs.folder import PLAN, RUNS, alone, append, read_lines
from corebatch.bench.runs.jobs import PilotJob, outcome
from corebatch.bench.runs.power import (
    SpreadOfPairs,
    detectable,
    interval_of_sd,
    of_comparison,
    of_pilots,
    seeds_for,
)
from corebatch.bench.runs.progress import progress
from corebatch.bench.runs.reading import read_comparison
from corebatch.bench.runs.statistics import LEVEL
from corebatch.bench.runs.tuning import candidates
from corebatch.errors import ConfigError
from corebatch.rendering.formats import clean, count, duration
from corebatch.rendering.sheet import Sheet
from corebatch.text import say

PILOTS = "pilots.jsonl"
FIRST_PILOT = 1001
"""The first pilot seed, unless the comparison has it."""


def plan_ahead(setup: Setup, earlier: Path | None, tokens_a_row: float) -> tuple[Sheet, Mapping[str, Any]]:
    """Times the arms, trains pilots where nothing else tells the spread, and writes plan.json where no run has a line
    yet. Gives the table of the arms, and what power.power_sheet shows.

    Args:
        earlier: the folder of a comparison whose spread is taken.
        tokens_a_row: mean trained tokens of a row of the data.

    Raises:
        ConfigError: as `compare`; no baseline, or the earlier comparison has no two seeds of its reference and another
            arm.
    """
    arms = [arm for arm in setup.arms if arm.method.name != REFERENCE]
    named = [arm.name for arm in arms if arm.method.baseline and arm.budget == "wall_clock"] or [a.name for a in arms]
    if not named:
        raise ConfigError("compare: a plan needs an arm beside the reference. Found none: name some in compare.arms.")
    with alone(setup.folder), setup.workers:
        costs, steps = costs_and_steps(setup)
        begun = bool(read_lines(setup.folder / RUNS))
        spread, of = _spread(setup, costs, steps, named, earlier, begun)
        seconds = _seconds(setup, costs, steps)
        found = {
            "of": of,
            "baselines": len(named),
            "alpha": (1 - LEVEL) / len(named),
            "effect": setup.settings.smallest_effect,
            "seeds": len(setup.settings.seeds),
            "means": {mean: _told(own, setup, len(named)) for mean, own in spread.items()},
            "hours": _hours(setup, costs, steps, seconds),
        }
        if not begun:
            write_plan(setup, costs, steps, power=found)
    return _arms(setup, steps, seconds, tokens_a_row), found


def _spread(
    setup: Setup,
    costs: Mapping[str, MethodCost],
    steps: Mapping[str, int],
    named: Sequence[str],
    earlier: Path | None,
    begun: bool,
) -> tuple[dict[str, SpreadOfPairs], str]:
    """How much pairs differ, and where that is from, in words."""
    if earlier is not None:
        found = of_comparison(read_comparison(earlier), named)
        if not found:
            raise ConfigError(
                f"--spread-of should be a comparison with two seeds of its reference and another arm. Found {earlier}."
            )
        return found, f"the runs in {earlier.name}"
    if begun and (setup.folder / PLAN).exists():
        found = of_comparison(read_comparison(setup.folder), named)
        if found:
            return found, "the runs that are here already"
    lines, seeds = _pilots(setup, costs, steps)
    return of_pilots(lines, setup.arms[0].name, named), f"pilots with the seeds {seeds[0]} and {seeds[1]}"


def _pilots(
    setup: Setup, costs: Mapping[str, MethodCost], steps: Mapping[str, int]
) -> tuple[list[dict[str, Any]], list[int]]:
    """Their lines, of which those that are missing are trained now. Raises ConfigError: one failed."""
    taken = {*setup.settings.seeds, setup.settings.tune.seed}
    seeds = [seed for seed in range(FIRST_PILOT, FIRST_PILOT + len(taken) + 2) if seed not in taken][:2]
    lines = [line for line in read_lines(setup.folder / PILOTS) if line["status"] == "ok" and line["seed"] in seeds]
    done = {(line["arm"], line["seed"]) for line in lines if line["planned"]["steps"] == steps.get(line["arm"])}
    lines = [line for line in lines if (line["arm"], line["seed"]) in done]
    jobs = [
        PilotJob(arm=arm, seed=seed, steps=steps[arm.name])
        for seed in seeds
        for arm in setup.arms
        if (arm.name, seed) not in done
    ]
    if jobs:
        work = {arm.name: costs[arm.method.name].seconds.of(steps[arm.name]) for arm in setup.arms}
        whole = sum(work[job.arm.name] for job in jobs)
        told = duration(whole / setup.workers.count)
        say(
            setup.console,
            f"{len(jobs)} pilots will tell how much runs differ, in about {told} and what evaluating them takes. What "
            "is finished is kept; --spread-of takes an earlier comparison's in their place.",
        )
        with setup.workers.all() as each, progress(setup.console, "training pilots", len(jobs), whole) as tick:
            for job, result in each(jobs):
                line = {"kind": "pilot", "arm": job.arm.name, "seed": job.seed, "planned": {"steps": job.steps}}
                line |= outcome(result)
                append(setup.folder / PILOTS, line)
                if line["status"] != "ok":
                    raise ConfigError(f"The pilot of {job.arm.name} with the seed {job.seed} failed: {line['error']}")
                lines.append(line)
                tick(f"{job.title}: {line['final'][setup.metric]:.4f}", work[job.arm.name])
    return lines, seeds


def _told(own: SpreadOfPairs, setup: Setup, baselines: int) -> dict[str, Any]:
    """Of one mean: the spread with its interval, the seeds that the smallest effect needs by the spread and by both
    ends, and the smallest effect that the configured seeds find."""
    alpha, effect, seeds = (1 - LEVEL) / baselines, setup.settings.smallest_effect, len(setup.settings.seeds)
    low, high = interval_of_sd(own.sd, own.freedom)
    needed = [seeds_for(effect, sd, alpha) for sd in (own.sd, low, high)]
    found = [detectable(sd, seeds, alpha) if seeds > 1 else None for sd in (own.sd, low, high)]
    return {
        "sd": [own.sd, low, high],
        "freedom": own.freedom,
        "rows": own.rows,
        "needed": needed,
        "detectable": found,
    }


def _seconds(setup: Setup, costs: Mapping[str, MethodCost], steps: Mapping[str, int]) -> dict[str, float]:
    """Of a run of each arm: what pilots took by the clock, evaluation included; else what its steps take."""
    taken: dict[str, list[float]] = {}
    for line in read_lines(setup.folder / PILOTS):
        if line["status"] == "ok":
            taken.setdefault(line["arm"], []).append(line["wall_seconds"])
    return {
        arm.name: statistics.median(taken[arm.name])
        if arm.name in taken
        else costs[arm.method.name].seconds.of(steps[arm.name])
        for arm in setup.arms
    }


def _hours(
    setup: Setup, costs: Mapping[str, MethodCost], steps: Mapping[str, int], seconds: Mapping[str, float]
) -> dict[str, float]:
    """Of tuning and of all runs, on as many processes as the comparison has here."""
    side, grid = setup.workers.count, len(candidates(setup.settings.tune, setup.learning_rate))
    tuning = spend_of(setup, costs, steps).of_tuning(grid, setup.settings.tune.shortest)
    runs = len(setup.settings.seeds) * sum(seconds.values())
    return {"tuning": tuning / side / 3600, "runs": runs / side / 3600, "processes": side}


def _arms(setup: Setup, steps: Mapping[str, int], seconds: Mapping[str, float], tokens_a_row: float) -> Sheet:
    """What each arm will have."""
    return Sheet(
        title="Planned",
        header=("arm", "steps", "rows drawn", "rows trained", "tokens, about", "seconds a run", "runs"),
        rows=tuple(
            (
                clean(arm.name),
                count(steps[arm.name]),
                count(steps[arm.name] * arm.rows_drawn),
                count(steps[arm.name] * arm.rows_trained),
                count(round(steps[arm.name] * arm.rows_trained * tokens_a_row)),
                words.seconds(seconds[arm.name]),
                str(len(setup.settings.seeds)),
            )
            for arm in setup.arms
        ),
        caption="Tokens by the data's mean row; arms that draw long rows have more. Seconds of a run are those of the "
        "pilots by the clock where there are pilots, else of its steps alone.",
    )


def end_in_words(found: Mapping[str, Any]) -> str:
    """How long tuning and all runs take."""
    hours = found["hours"]
    tuning, runs = (duration(3600 * hours[key]) for key in ("tuning", "runs"))
    side = int(hours["processes"])
    return (
        f"To the end about {duration(3600 * (hours['tuning'] + hours['runs']))}: {tuning} of tuning, {runs} of runs, "
        f"on {side} process{'es' * (side != 1)} side by side, if these do not slow each other."
    )
