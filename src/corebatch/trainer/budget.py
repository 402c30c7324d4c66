"""A batch that grows, in a Trainer: what each step draws, how far the run is, and where it is gone on with.

The Trainer's loop has slots, one for each configured step. A step that takes more rows leaves slots at the end of its
epoch that get nothing, so that the run makes fewer steps. Whatever the Trainer counts by steps but is meant of rows is
put right here: the epoch, the learning rate's schedule, the end of the run, and the place where a resumed run goes on.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from corebatch.batch.budget import WHAT, Measured, RunBudget
from corebatch.errors import CheckpointError, ConfigError
from corebatch.sampling.tags import is_stream
from corebatch.trainer.noise_checks import or_a_number, why_not

PATIENCE = 10
"""Steps at which the noise should be measured, and may not be known yet: fp16 may begin with too large a scale."""

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


def run_budget(trainer: Any, ranks: int) -> RunBudget | None:
    """Of the run, or None where all steps have the configured rows.

    Raises:
        ConfigError: `coreset.budget` stands beside a stream.
    """
    coreset, dataset = trainer.coreset, trainer.train_dataset
    if coreset.budget is None:
        return None
    if dataset is not None and is_stream(dataset):
        raise ConfigError(
            f"{WHAT} spreads the rows of an epoch over its steps. Found a stream: use data with a length."
        )
    rows = trainer._train_batch_size * ranks
    return RunBudget(coreset.budget, accumulation=trainer.args.gradient_accumulation_steps, rows=rows)


def check_budget(trainer: Any) -> None:
    """Raises ConfigError for a budget by the noise of the gradient, where it is not measured."""
    coreset = trainer.coreset
    if not isinstance(coreset.budget, Measured):
        return
    found = None if coreset.track_error else why_not(trainer)
    if coreset.noise_scale is False:
        found = "coreset.noise_scale false"
    if found is not None:
        cure = "Use ramp" if coreset.pool_factor == 1 or coreset.noise_scale is False else "Set coreset.track_error"
        cure += "" if coreset.noise_scale is False else or_a_number(trainer)
        raise ConfigError(f"{WHAT} {coreset.budget.name} goes by the measured noise. Found {found}. {cure}.")


def to_draw(trainer: Any, asked: int) -> int:
    """Batches that the next step takes of the loader. `asked`: what the Trainer's loop asks for.

    Raises:
        ConfigError: a budget goes by noise that could not be measured so far.
    """
    budget: RunBudget | None = trainer._run.budget
    if budget is None:
        return asked
    noise = trainer._run.noise
    known, most = noise.running.noise, PATIENCE * max(noise.every, trainer.coreset.track_error)
    if known is None and budget.updates > most and isinstance(budget.method, Measured):
        raise ConfigError(
            f"{WHAT} {budget.method.name} goes by the measured noise. Found none after {budget.updates} steps; the log "
            "says why. Use ramp."
        )
    return budget.next(known)


def passed_over(trainer: Any) -> int:
    """Batches of the loader that a resumed run passes over before its first step, beside those of whole slots."""
    budget: RunBudget | None = trainer._run.budget
    if budget is None:
        return 0
    found, budget.skip = budget.skip, 0
    return found


def to_train(trainer: Any, given: int, asked: int) -> int:
    """Micro-batches into which a step's rows are cut.

    Args:
        given: batches that were drawn.
        asked: as the Trainer's loop asks.
    """
    budget: RunBudget | None = trainer._run.budget
    if budget is not None:
        return budget.pieces(given)
    # At the end of a stream the plain Trainer trains what there is; a small batch is spread out.
    return asked if trainer.coreset.pool_factor > 1 else given


def steps_of_rows(trainer: Any) -> int:
    """How many configured steps the rows are that were drawn; without a budget the steps that were made."""
    budget: RunBudget | None = trainer._run.budget
    return int(trainer.state.global_step) if budget is None else budget.position


class ByRows(_Base):
    """What of the Trainer's own goes by rows."""

    _run: Any

    def _load_callback_state(self) -> None:
        """The parent's, when a checkpoint's state is read: the loop goes on in the slot that the rows are in.
        `BudgetWatch` gives the state its steps back."""
        super()._load_callback_state()
        if self._run.budget is not None:
            self.state.global_step = self._run.budget.position

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The parent's, with the learning rate that the last step had."""
        if self._run.budget is not None and "learning_rate" in logs:
            logs["learning_rate"] *= self._run.budget.rate
        super().log(logs, *args, **kwargs)


class BudgetWatch(TrainerCallback):
    """The first of all callbacks, so that others see the state as it is. Does nothing where there is no budget.

    Args:
        trainer: whose run it is.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._rates: list[Any] = []

    @property
    def _budget(self) -> RunBudget:
        found: RunBudget = self._trainer._run.budget
        return found

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raises CheckpointError for a checkpoint that has drawn more rows than the run is to draw."""
        budget = self._budget
        budget.steps_of_run = state.max_steps
        if not budget.updates:
            return
        state.global_step = self._trainer._globalstep_last_logged = budget.updates
        self._trainer._initial_global_step = budget.updates
        if budget.done > 1:
            raise CheckpointError(
                f"The checkpoint has drawn the rows of {budget.position} steps, more than the {state.max_steps} that "
                "the run is to make. Raise max_steps or num_train_epochs, or resume from an earlier checkpoint."
            )
        if budget.done == 1:
            state.max_steps = budget.updates

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._budget.begin_epoch()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        if (rate := self._budget.rate) != 1:
            self._rates = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * rate

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        for group, rate in zip(optimizer.param_groups if self._rates else (), self._rates, strict=True):
            group["lr"] = rate  # a schedule may go on from it
        self._rates = []

    def on_step_end(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        budget = self._budget
        further = budget.advance(state.global_step)
        state.epoch = budget.epochs
        if "metrics" not in inspect.signature(lr_scheduler.step).parameters:  # else it goes by evaluations
            for _further in range(further - 1):  # the Trainer has made one
                lr_scheduler.step()
        if budget.done >= 1:
            state.max_steps = state.global_step


def watch_budget(trainer: Any) -> None:
    """Puts a `BudgetWatch` before all callbacks where the run has a budget, and takes away that of an earlier run."""
    callbacks = trainer.callback_handler.callbacks
    callbacks[:] = [each for each in callbacks if not isinstance(each, BudgetWatch)]
    if trainer._run.budget is not None:
        callbacks.insert(0, BudgetWatch(trainer))
