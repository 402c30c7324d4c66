"""The jobs of a comparison: what a worker process is asked for, and what it needs to do it."""

from __future__ import annotations

import dataclasses
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
from corebatch.bench.runs.rehearsals import count_flops, time_arm, warm_up
from corebatch.bench.runs.step_positions import count_positions
from corebatch.bench.runs.subsets import choose_rows, kept_rows
from corebatch.bench.runs.training_run import RunPlan, pilot_arm, run_arm, tune_arm
from corebatch.errors import CorebatchError
from corebatch.record.provenance import provenance

FLOPS_POOLS = 3
"""Large batches on which FLOPs are counted, at most."""


class Workplace:
    """What a process has to run jobs on a `device`, "cpu" or "cuda:0"; the data are read by the first job."""

    def __init__(self, parts: Parts, device: str) -> None:
        self.settings, self.device = parts.own, device
        self.methods = by_method(parts.arms)
        self.rows_drawn = parts.arms[0].rows_drawn  # a step of the reference
        self.warm: set[str] = set()
        self.parts = parts
        self._own: dict[str, RunData] = {}

    @cached_property
    def data(self) -> RunData:
        """Data and model of the comparison in this process."""
        return read_data(self.parts, self.device)

    def run(self, job: Job) -> dict[str, Any]:
        """What the job found, and where."""
        return {**job.run(self), **provenance()}

    def data_of(self, method: str) -> RunData:
        """The same, with the rows that the method trains on."""
        if method not in self._own:
            train = kept_rows(self.methods[method], self.parts.settings, self.data.train)
            self._own[method] = dataclasses.replace(self.data, train=train)
        return self._own[method]

    def rehearsal_rows(self, pools: int, method: str, number: int = 0) -> list[int]:
        """So many large batches of rows at random, by the round's number, the same for every arm that trains on the
        same rows; of every source if they are enough. All rows of a subset that is less than one. Rounded up to whole
        steps of the arm, which may have more rows than a large batch: the cost of a part of a step is no step's."""
        train, step = self.data_of(method).train, self.methods[method].rows_drawn
        rows = len(train)
        count = min(rows // self.rows_drawn, pools) * self.rows_drawn or rows
        count = min(-(-count // step), rows // step) * step or count
        return with_every_source(random.Random(number).sample(range(rows), rows), train["source"], count)


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
class _OfMethod:
    method: str

    @property
    def title(self) -> str:
        """What it is of, in a few words; so have all jobs."""
        return self.method


@dataclass(frozen=True, kw_only=True)
class SubsetRowsJob(_OfMethod):
    """Which rows an arm trains on."""

    def run(self, here: Workplace) -> dict[str, Any]:
        return choose_rows(here.methods[self.method], here.parts.settings)


@dataclass(frozen=True, kw_only=True)
class PositionsJob(_OfMethod):
    """How many positions a step of a method computes. `steps`: of a run; `seconds`: of a processor, at most."""

    kind: ClassVar[str] = "positions"
    steps: int
    seconds: float

    def run(self, here: Workplace) -> dict[str, Any]:
        least = max(2, here.settings.timing_pools)
        data = here.data_of(self.method)
        return count_positions(here.methods[self.method], data, self.steps, least, self.seconds)


@dataclass(frozen=True, kw_only=True)
class TimeJob(_OfMethod):
    """How many seconds a step of a method takes, on the rows of a round."""

    kind: ClassVar[str] = "time"
    round: int

    def run(self, here: Workplace) -> dict[str, Any]:
        arm, rows = here.methods[self.method], here.rehearsal_rows(here.settings.timing_pools, self.method, self.round)
        data = here.data_of(self.method)
        if self.method not in here.warm:  # compiled kernels, and memory that is held from then on
            warm_up(arm, data, rows)
            here.warm.add(self.method)
        return {
            **time_arm(arm, data, rows, here.device, self.round),
            "rows": len(rows),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        }


@dataclass(frozen=True, kw_only=True)
class FlopsJob(_OfMethod):
    """How many FLOPs a step of a method takes."""

    kind: ClassVar[str] = "flops"

    def run(self, here: Workplace) -> dict[str, Any]:
        rows = here.rehearsal_rows(min(FLOPS_POOLS, here.settings.timing_pools), self.method)
        return count_flops(here.methods[self.method], here.data_of(self.method), rows)


@dataclass(frozen=True, kw_only=True)
class TuneJob(RunPlan):
    """How good a method is with these values after so many steps."""

    method: str

    @property
    def title(self) -> str:
        return f"{self.method}, learning rate {self.learning_rate:g}"

    def run(self, here: Workplace) -> dict[str, Any]:
        return tune_arm(here.methods[self.method], here.data_of(self.method), self)


@dataclass(frozen=True, kw_only=True)
class _OfArm(RunPlan):
    arm: Arm

    @property
    def title(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class RunJob(_OfArm):
    """A whole run of an arm. `seconds`, `flops`: what its steps cost, by which it is accounted for."""

    seconds: StepCost
    flops: StepCost

    def run(self, here: Workplace) -> dict[str, Any]:
        evaluations, data = here.settings.evaluations, here.data_of(self.arm.method.name)
        return run_arm(self.arm, data, self, seconds=self.seconds, flops=self.flops, evaluations=evaluations)


@dataclass(frozen=True, kw_only=True)
class PilotJob(_OfArm):
    """A run that tells how much runs differ, at the config's own rates."""

    def run(self, here: Workplace) -> dict[str, Any]:
        return pilot_arm(self.arm, here.data_of(self.arm.method.name), self)


Job = SubsetRowsJob | PositionsJob | TimeJob | FlopsJob | TuneJob | RunJob | PilotJob
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
