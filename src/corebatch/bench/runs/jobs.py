"""The jobs of a comparison: what a worker process is asked for, and what it needs to do it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch

from corebatch.bench.runs.arms import Arm, by_method
from corebatch.bench.runs.costs import StepCost
from corebatch.bench.runs.from_config import Parts, RunData, read_data
from corebatch.bench.runs.training_run import RunPlan, count_flops, run_arm, time_arm, tune_arm
from corebatch.errors import CorebatchError
from corebatch.record.provenance import provenance

FLOPS_POOLS = 3
"""Large batches on which FLOPs are counted."""


class Workplace:
    """What a process has to run jobs on a `device`, "cpu" or "cuda:0"; the data are read by the first job."""

    def __init__(self, parts: Parts, device: str) -> None:
        self.settings, self.device = parts.own, device
        self.methods = by_method(parts.arms)
        self.rows_drawn = parts.arms[0].rows_drawn  # a step of the reference
        self.warm: set[str] = set()
        self.parts = parts

    @cached_property
    def data(self) -> RunData:
        """Data and model of the comparison in this process."""
        return read_data(self.parts, self.device)

    def run(self, job: Job) -> dict[str, Any]:
        """What the job found, and where."""
        return {**job.run(self), **provenance()}

    def rehearsal_rows(self, pools: int) -> list[int]:
        """So many large batches of rows at random, the same for every arm; of every source if they are enough."""
        rows = len(self.data.train)
        count = min(rows // self.rows_drawn, pools) * self.rows_drawn
        return with_every_source(random.Random(0).sample(range(rows), rows), self.data.train["source"], count)


def with_every_source(order: Sequence[int], sources: Sequence[str], count: int) -> list[int]:
    """The first `count` rows of an order, where later ones of missing sources replace some: an objective may name a
    source. `sources`: of every row of the data."""
    firsts = {sources[row]: row for row in reversed(order)}
    chosen, missing = order[:count], [row for row in firsts.values() if row not in set(order[:count])]
    if not missing or len(firsts) > count:
        return list(chosen)
    needed = set(firsts.values())
    spare = [row for row in chosen if row not in needed][: count - len(needed)]
    return [row for row in order if row in needed or row in set(spare)]


@dataclass(frozen=True, kw_only=True)
class TimeJob:
    """How many seconds a step of a method takes."""

    kind: ClassVar[str] = "time"
    method: str

    def run(self, here: Workplace) -> dict[str, Any]:
        arm, rows = here.methods[self.method], here.rehearsal_rows(here.settings.timing_pools)
        if self.method not in here.warm:  # compiled kernels, and memory that is held from then on
            time_arm(arm, here.data, rows[: here.rows_drawn], here.device)
            here.warm.add(self.method)
        return {
            "seconds": list(time_arm(arm, here.data, rows, here.device)),
            "rows": len(rows),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        }


@dataclass(frozen=True, kw_only=True)
class FlopsJob:
    """How many FLOPs a step of a method takes."""

    kind: ClassVar[str] = "flops"
    method: str

    def run(self, here: Workplace) -> dict[str, Any]:
        return {"flops": list(count_flops(here.methods[self.method], here.data, here.rehearsal_rows(FLOPS_POOLS)))}


@dataclass(frozen=True, kw_only=True)
class TuneJob(RunPlan):
    """How good a method is with these values after so many steps."""

    method: str

    def run(self, here: Workplace) -> dict[str, Any]:
        return tune_arm(here.methods[self.method], here.data, self)


@dataclass(frozen=True, kw_only=True)
class RunJob(RunPlan):
    """A whole run of an arm. `seconds`, `flops`: what its steps cost, by which it is accounted for."""

    arm: Arm
    seconds: StepCost
    flops: StepCost

    def run(self, here: Workplace) -> dict[str, Any]:
        evaluations = here.settings.evaluations
        return run_arm(self.arm, here.data, self, seconds=self.seconds, flops=self.flops, evaluations=evaluations)


Job = TimeJob | FlopsJob | TuneJob | RunJob
Each = Callable[[Sequence[Any]], Iterator[tuple[Any, Any]]]
"""Runs jobs side by side: (job, result) pairs as they end; a run that fails is a result, an Exception, not the end."""


def failure(error: Exception) -> Exception:
    """The error of a job as a result: one of ours, or one that names the other's type."""
    return error if isinstance(error, CorebatchError) else RuntimeError(f"{type(error).__name__}: {error}")


def outcome(found: Mapping[str, Any] | Exception) -> dict[str, Any]:
    """A job's result as a part of its line."""
    if isinstance(found, Exception):
        return {"status": "failed", "error": str(found), **provenance()}
    return {"status": "ok", **found}
