"""Rehearsals: what a step of an arm takes, by training it on a part of the data."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from transformers import TrainerCallback

from corebatch.batch.budget import CONSTANT
from corebatch.bench.runs.arms import Arm
from corebatch.bench.runs.costs import flop_counter, step_means
from corebatch.bench.runs.from_config import RunData
from corebatch.bench.runs.training_run import RunPlan, train_arm


class _Stamps(TrainerCallback):
    def __init__(self, device: str) -> None:
        self.times: list[float] = []
        self._cuda = device.startswith("cuda")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def time_arm(arm: Arm, data: RunData, rows: Sequence[int], device: str, seed: int = 0) -> dict[str, Any]:
    """Seconds and positions of a step, first pass and later, on a part of the data; and of each step but the first."""
    stamps = _Stamps(device)
    arm = constant(arm)
    steps, epoch = _rehearsal(arm, rows)
    rehearsal = RunPlan(steps=steps, seed=seed)
    _, counts = train_arm(arm, data, rehearsal, dataset=data.train.select(rows), callbacks=lambda *_: [stamps])
    seconds = [round(after - before, 6) for before, after in pairwise(stamps.times)]
    return {
        "seconds": list(step_means(seconds, epoch, remembers(arm))),
        "positions": list(step_means(counts.positions[1:], epoch, remembers(arm))),
        "steps": list(zip(seconds, counts.positions[1:], strict=True)),
    }


def warm_up(arm: Arm, data: RunData, rows: Sequence[int]) -> None:
    """A few steps that are not timed, on the rows of those that are: settings may name every source of them."""
    train_arm(constant(arm), data, RunPlan(steps=3, seed=0), dataset=data.train.select(rows))


def count_flops(arm: Arm, data: RunData, rows: Sequence[int]) -> dict[str, Any]:
    """FLOPs and positions of a step, first pass and later, counted while it runs."""
    found: list[int] = []
    counter = flop_counter()

    class Reads(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            found.append(counter.get_total_flops())

    arm = constant(arm)
    steps, epoch = _rehearsal(arm, rows)
    with counter:
        rehearsal = RunPlan(steps=steps, seed=0)
        _, counts = train_arm(arm, data, rehearsal, dataset=data.train.select(rows), callbacks=lambda *_: [Reads()])
    each = [after - before for before, after in pairwise(found)]
    return {
        "flops": list(step_means(each, epoch, remembers(arm))),
        "positions": list(step_means(counts.positions[1:], epoch, remembers(arm))),
    }


def constant(arm: Arm) -> Arm:
    """The arm with steps of the configured rows, by which rows are accounted for in a batch that grows too."""
    return dataclasses.replace(arm, coreset=arm.coreset.changed(budget=CONSTANT))


def _rehearsal(arm: Arm, rows: Sequence[int]) -> tuple[int, int]:
    """Steps of a rehearsal, and of one pass in it: pool_factor passes, so that every arm trains as many rows, and
    what a few choices happen to be long or short of evens out."""
    epoch = max(1, len(rows) // arm.rows_drawn)
    return max(3, epoch * arm.coreset.pool_factor), epoch


def remembers(arm: Arm) -> bool:
    """Whether the first pass over the data costs other than later ones."""
    step = arm.coreset.build()
    scores = arm.coreset.pool_factor > 1 and step.scores and step.scorer.needs_forward
    return scores and (arm.coreset.scoring_settings.first_pass_differs or step.scorer.stands_for_loss)
