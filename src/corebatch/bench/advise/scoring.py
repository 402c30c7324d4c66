"""What scoring would cost: forwards of the pool's rows by the trainer's own code, beside the time of a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from corebatch.batch.strategies import shortest
from corebatch.bench.advise.finding import MORE_MINUTES, Finding
from corebatch.bench.advise.padding import NO_TIME
from corebatch.bench.advise.probe import Probe
from corebatch.bench.advise.shapes import train_once
from corebatch.bench.advise.steps import make_steps
from corebatch.bench.gradients.methods import Method
from corebatch.bench.gradients.population import ROWS_AT_A_TIME, Population, PopulationScoring
from corebatch.bench.gradients.way import Way
from corebatch.errors import CorebatchError
from corebatch.model.flops import finish
from corebatch.model.modes import modes_kept

ROWS = 64
"""Rows of the sample that are scored, at most."""
OWN = "as configured"
WAYS: dict[str, tuple[str, Way]] = {
    "scoring by gradients of the last layer": ("last_layer", Way()),
    "scoring by losses": ("loss", Way()),
    "scoring by the first blocks alone": ("last_layer", Way("first_blocks")),
}
"""Levers, each with a scorer and a way of scoring."""


def measure(probe: Probe) -> list[Finding]:
    """The time of a token that a step trains where it scores its pool, over that as configured: of a step that is made,
    or where none goes into the time, told from the time of a row's scoring."""
    coreset, step = probe.settings.coreset, probe.known.get("step")
    if step is None:
        why = f": {MORE_MINUTES}" * probe.known.get("no time for a step", False)
        return [Finding(lever="scoring", unmeasured=f"the time of a step is not known{why}")]
    pool = probe.batch_size * max(coreset.pool_factor, 2)
    configured, chooses, end = _configured(probe), coreset.pool_factor > 1, probe.deadline
    probe.deadline -= max(0.0, probe.seconds_left) / 2  # the rest is for steps
    found = _row_seconds(probe, WAYS if configured is None else {**WAYS, OWN: configured})
    probe.deadline = end
    known = found.pop(OWN, None)
    own = known * pool * configured[1].price() if configured is not None and isinstance(known, float) else 0.0
    scorable = any(isinstance(seconds, float) for seconds in found.values())
    train = max(step - own, 0.0) * (_weighted(probe) if scorable and not chooses else 1.0)
    findings = []
    for name, seconds in found.items():
        if isinstance(seconds, str):
            findings.append(Finding(lever=name, unmeasured=seconds))
            continue
        scorer, way = WAYS[name]
        changes: dict[str, Any] = {"scorer": scorer, "selector": "importance", "scoring": way.name}
        if not chooses:
            changes |= {"pool_factor": 2, "micro_batches": coreset.cut.plain()}
        factor = (train + seconds * pool) / step
        told = f"{1000 * seconds:.3g} ms a row, {seconds * pool:.3g} s for a pool of {pool}; a step takes {step:.3g} s"
        if (made := _made(probe, changes, factor * step)) is not None:
            factor, told = made, f"{told}; a step that scores was made"
        numbers = {"row_seconds": seconds, "pool": pool, "step_seconds": step, "configured_seconds": own}
        keys = {f"coreset.{key}": value for key, value in changes.items()}
        findings.append(Finding(lever=name, arm=keys, factor=factor, of="seconds a token", why=told, numbers=numbers))
    return findings


def _made(probe: Probe, changes: dict[str, Any], seconds: float) -> float | None:
    """Seconds a token of a step with other settings over those as configured; None where it does not go into the time,
    of about so many seconds, or the other settings stand in its way."""
    if 2 * seconds > probe.seconds_left or "token" not in probe.known:
        return None
    try:
        settings = replace(probe.settings, coreset=probe.settings.coreset.changed(**changes))
        made = make_steps(replace(probe, settings=settings), steps=2)
    except CorebatchError:
        return None
    return sum(made.seconds) / sum(made.tokens) / float(probe.known["token"])


def _weighted(probe: Probe) -> float:
    """Time of a forward and backward with weights, of which logits are computed at labels alone, over that without."""
    batch = probe.batch([probe.sample[i % len(probe.sample)] for i in range(probe.args.per_device_train_batch_size)])
    taken = [[train_once(probe, batch, weights=on) for on in (True, False)] for _ in range(3)]
    return statistics.median(weighted / plain for weighted, plain in taken)


def _configured(probe: Probe) -> tuple[str, Way] | None:
    """Scorer and way of the config, where it runs forwards to choose."""
    coreset = probe.settings.coreset
    if coreset.pool_factor == 1:
        return None
    strategy, step = coreset.resolve_scoring(probe.args.num_train_epochs > 1), coreset.build()
    if not (step.scores and step.scorer.needs_forward) or strategy.way == "none":
        return None
    short = shortest(strategy)
    options = {} if isinstance(short, str) else {key: short[key] for key in short if key not in ("way", "rows")}
    return step.scorer.name, Way(strategy.way, options)


def _row_seconds(probe: Probe, wanted: Mapping[str, tuple[str, Way]]) -> dict[str, float | str]:
    """Of each, seconds of a row's scoring, or why they are not known."""
    count = min(ROWS, len(probe.sample))
    rows = sorted(range(count), key=lambda i: probe.sample[i]["length"])
    parts = [rows[i : i + ROWS_AT_A_TIME] for i in range(0, count, ROWS_AT_A_TIME)]
    population = Population.of([probe.batch([probe.sample[i] for i in part]) for part in parts])
    found: dict[str, float | str] = {}
    for place, (name, (scorer, way)) in enumerate(wanted.items()):
        share = max(probe.seconds_left, 0.0) / (len(wanted) - place)
        try:
            found[name] = _seconds(probe, population, scorer, way, share)
        except CorebatchError as error:
            found[name] = str(error)
    return found


def _seconds(probe: Probe, population: Population, scorer: str, way: Way, share: float) -> float | str:
    """Of a row, the least of up to three times; of as many rows as go into the share."""
    end = time.monotonic() + share
    method = Method(scorer, "importance", way=way if way.strategy.own_forward else Way())
    scoring = PopulationScoring(method.coreset(probe.seed, ROWS_AT_A_TIME), population)
    middle = torch.tensor([len(population) // 2])
    with modes_kept(probe.model), probe.autocast():
        _once(probe, scoring, middle)  # what a first forward sets up
        first = _once(probe, scoring, middle)
        count = min(len(population), int((end - time.monotonic()) / first))
        if count < 1:
            return NO_TIME
        some = torch.linspace(0, len(population) - 1, count).round().long()
        best = float("inf")
        for _ in range(3):
            best = min(best, _once(probe, scoring, some) / count)
            if time.monotonic() + best * count > end:
                break
    return best


def _once(probe: Probe, scoring: PopulationScoring, rows: Tensor) -> float:
    finish(probe.device)
    began = time.perf_counter()
    scoring.score(probe.model, rows)
    finish(probe.device)
    return time.perf_counter() - began
