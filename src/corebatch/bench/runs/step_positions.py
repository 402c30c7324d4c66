"""How many positions a step of an arm computes: counted over many steps whose rows are drawn and chosen, and of which
none is trained, so that it takes a small part of the time of a run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from corebatch.batch.online import OnlineObjective
from corebatch.bench.runs.arms import Arm
from corebatch.bench.runs.costs import relative_error
from corebatch.bench.runs.from_config import RunData
from corebatch.bench.runs.rehearsals import constant, remembers
from corebatch.bench.runs.training_run import CountingTrainer, RunPlan, trainer_of

PRECISION = 0.01
"""Standard error of the mean at which counting ends, as a share."""
SECONDS = 60.0
PASSES, FIRST_SEED = 50, 10_000
"""Of the data, at most, each in another order; the seed of the first."""
_EVERY = 25  # steps between two looks at the error


class _EnoughError(Exception):
    """Ends a pass."""


class _Drawing(CountingTrainer):
    """Draws, chooses and counts until it is enough, and trains nothing."""

    enough: Callable[[Sequence[int], float], bool]
    spent = 0.0

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        super().get_batch_samples(*args, **kwargs)
        self.spent += time.process_time() - began
        self.state.global_step += 1  # draws and choices have generators by the step
        if self.enough(self.counts.positions, self.spent):
            raise _EnoughError
        return [], None


def may_be_counted(arm: Arm) -> bool:
    """Whether rows are drawn and chosen without what training would have taught; else a step's positions are those of
    the steps that are timed."""
    sampling = arm.coreset.sampling
    learnt = sampling is not None and sampling.learnt is not None
    return not (learnt or remembers(arm) or OnlineObjective.of(arm.coreset.claimed, 0) is not None)


def count_positions(arm: Arm, data: RunData, steps: int, least: int, most_seconds: float = SECONDS) -> dict[str, Any]:
    """Mean positions of a step, their spread and the mean's standard error.

    Args:
        steps: of a run. So many are counted, if time allows, and more until the mean is known.
        least: counted in any case.
        most_seconds: of a processor, spent on drawing and choosing, after which it ends anyway.
    """
    arm, found, spent = constant(arm), list[int](), 0.0

    def enough(more: Sequence[int], seconds: float) -> bool:
        count, late = len(found) + len(more), spent + seconds > most_seconds
        if count < least or late or count < steps or (more and count % _EVERY):
            return late and count >= least
        return relative_error([*found, *more]) <= PRECISION

    for seed in range(PASSES):
        with trainer_of(arm, data, RunPlan(steps=steps, seed=FIRST_SEED + seed), _Drawing) as (trainer, _):
            trainer.enough = enough
            with suppress(_EnoughError):
                trainer.train()
        found += trainer.counts.positions
        spent += trainer.spent
        if enough((), 0.0):
            break
    mean = statistics.mean(found)
    error, spread = relative_error(found), statistics.pstdev(found) / mean
    return {"positions": [mean, mean], "error": error, "spread": spread, "counted": len(found)}
