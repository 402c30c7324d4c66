"""What a step of each arm costs: positions counted over many steps, FLOPs over a few, seconds of all arms in turn, in
as many rounds as it takes until the ratios are known."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from corebatch.bench.runs.arms import REFERENCE, Arm
from corebatch.bench.runs.costs import MethodCost, StepCost, StepPositions, side_by_side
from corebatch.bench.runs.folder import TIMING, append, read_lines
from corebatch.bench.runs.jobs import FlopsJob, PositionsJob, TimeJob
from corebatch.bench.runs.processes import Processes
from corebatch.bench.runs.progress import progress
from corebatch.bench.runs.step_positions import SECONDS, may_be_counted
from corebatch.bench.runs.validity import KNOWN_TO
from corebatch.errors import ConfigError
from corebatch.record.provenance import provenance
from corebatch.text import say

MORE = 4
"""Times as many rounds at most, where the ratios are not known to KNOWN_TO by the configured ones."""
TIMING_SHARE = 0.4
"""Of a quick comparison's minutes."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How the arms are timed; every line is kept in the folder's timing.jsonl.

    Attributes:
        methods: an arm of each.
        steps: of the reference's run.
        rounds, most: how many at least, and at most.
        epochs: steps of a pass, by method.
        before: seconds of choosing its rows, by method, where it does.
        counting: seconds of a processor that counting a method's positions may take.
        until: by time.monotonic, when it should be over.
    """

    methods: Mapping[str, Arm]
    folder: Path
    steps: int
    rounds: int
    most: int
    epochs: Mapping[str, float]
    before: Mapping[str, float]
    counting: float = SECONDS
    until: float = math.inf

    def costs(self, workers: Processes, console: Console) -> dict[str, MethodCost]:
        """By method, from lines that are there and those that are missing; says whose seconds are not well known.
        Raises ConfigError: it is not over when it should be."""
        lines = read_lines(self.folder / TIMING)
        number = max([self.rounds, *(line["round"] + 1 for line in lines if line["kind"] == "time")])
        self._add(lines, number, workers, console)
        while uncertain := _uncertain(found := self._costs(lines)):
            if number >= self.most or not self._helps(lines, found):
                break
            say(console, f"One more round, since seconds a step are not known to {KNOWN_TO:.0%}: {uncertain}.")
            number += 1
            self._add(lines, number, workers, console)
        if uncertain:
            say(console, f"Seconds a step are not known to {KNOWN_TO:.0%} after {number} rounds: {uncertain}.")
        return found

    def _helps(self, lines: Sequence[Mapping[str, Any]], found: Mapping[str, MethodCost]) -> bool:
        """Whether one more round may make the seconds of any method known: not where what was counted is too few."""
        counted = {line["method"]: line["error"] for line in lines if line["kind"] == "positions"}
        errors = {name: math.hypot(counted.get(name, 0.0), counted.get(REFERENCE, 0.0)) for name in found}
        return any((cost.error or 0.0) > KNOWN_TO > errors[name] for name, cost in found.items())

    def _add(self, lines: list[dict[str, Any]], rounds: int, workers: Processes, console: Console) -> None:
        """Times and counts what `lines` lack, and adds it to them."""
        done = {(line["kind"], line["method"], line.get("round")) for line in lines}
        missing: list[tuple[PositionsJob | FlopsJob | TimeJob, int | None]] = []
        for method, arm in self.methods.items():
            if may_be_counted(arm) and ("positions", method, None) not in done:
                missing.append((PositionsJob(method=method, steps=self.steps, seconds=self.counting), None))
            if ("flops", method, None) not in done:
                missing.append((FlopsJob(method=method), None))
        for number in range(rounds):
            # A round counts as a whole: its ratios are of one time of day.
            if any(("time", method, number) not in done for method in self.methods):
                missing += [(TimeJob(method=method, round=number), number) for method in self.methods]
        if not missing:
            return
        with workers.one() as run, progress(console, "timing the arms side by side", len(missing)) as tick:
            for number, (job, turn) in enumerate(missing):
                if time.monotonic() > self.until:
                    raise ConfigError(
                        f"--quick should have its steps timed within {TIMING_SHARE:.0%} of its minutes. Found {number} "
                        f"of {len(missing)} measurements made: take a smaller model, shorter rows or fewer arms, or "
                        "the whole comparison, without --quick."
                    )
                line = {"kind": job.kind, "method": job.method, "round": turn, **run(job), **provenance()}
                lines.append(line)
                append(self.folder / TIMING, line)
                tick(f"{job.method}: {_cost_text(line)}")

    def _costs(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, MethodCost]:
        latest = {(line["kind"], line["method"], line.get("round")): line for line in lines}
        timed = [line for line in latest.values() if line["kind"] == "time"]
        positions = {
            method: StepPositions.of(
                latest.get(("positions", method, None)), [line for line in timed if line["method"] == method]
            )
            for method in self.methods
        }
        seconds = side_by_side(timed, REFERENCE, positions)
        made = {}
        for method in self.methods:
            cost, known = partial(StepCost, epoch=self.epochs[method]), positions[method]
            first, later, error = seconds[method]
            flops = latest["flops", method, None]
            share = (1.0, 1.0)
            if known is not None and flops.get("positions"):  # FLOPs are in proportion to positions
                share = known.mean[0] / flops["positions"][0], known.mean[1] / flops["positions"][1]
            made[method] = MethodCost(
                seconds=cost(first=first, later=later, before=self.before.get(method, 0.0)),
                flops=cost(first=flops["flops"][0] * share[0], later=flops["flops"][1] * share[1]),
                positions=None if known is None else cost(first=known.mean[0], later=known.mean[1]),
                spread=0.0 if known is None else known.spread,
                error=error,
            )
        return made


def _uncertain(costs: Mapping[str, MethodCost]) -> str:
    """Methods whose seconds beside the reference's are not well known, in words."""
    found = {name: cost.error for name, cost in costs.items() if cost.error is not None and cost.error > KNOWN_TO}
    return ", ".join(f"{name} (standard error {error:.1%})" for name, error in found.items())


def _cost_text(line: Mapping[str, Any]) -> str:
    if line["kind"] == "positions":
        found, error, counted = line["positions"][0], line["error"], line["counted"]
        return f"{found:,.0f} positions a step (standard error {error:.1%}, {counted:,} steps)"
    if line["kind"] == "flops":
        return f"{line['flops'][0] / 1e9:.1f} GFLOPs a step"
    return f"{line['seconds'][0]:.3f} s a step, later {line['seconds'][1]:.3f} s"
