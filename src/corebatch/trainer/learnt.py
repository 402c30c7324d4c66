"""Rows that are learnt, in a Trainer: the passes of a run, and what they are planned by."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from corebatch.batch.trained_losses import unknown
from corebatch.errors import ConfigError
from corebatch.record.run_identity import sampling as sampling_strategy
from corebatch.sampling.passes import LearntPasses
from corebatch.sampling.tags import is_stream


def learnt_passes(trainer: Any) -> LearntPasses | None:
    """The passes by `coreset.sampling.learnt`, or None without it.

    Raises:
        ConfigError: it stands beside a stream, another order of rows, or loss_by_source false.
    """
    coreset, dataset, args = trainer.coreset, trainer.train_dataset, trainer.args
    if coreset.sampling is None or coreset.sampling.learnt is None or dataset is None:
        return None
    what = "coreset.sampling.learnt"
    if is_stream(dataset):
        raise ConfigError(f"{what} remembers rows by their number. Found a stream: use data with a length.")
    if (order := sampling_strategy(args)) != "random":
        raise ConfigError(
            f"{what} decides on the order of rows, and so does train_sampling_strategy. Found {order!r}: set it to "
            f"random, or leave {what} out."
        )
    if coreset.loss_by_source is False:
        raise ConfigError(f"{what} follows the training loss of each row. Found loss_by_source false: leave it out.")

    def rows_of_run() -> int:
        return int(trainer.state.max_steps) * trainer._run.learnt.large

    seed = args.seed if args.data_seed is None else args.data_seed
    first = trainer.is_world_process_zero()
    return LearntPasses(coreset.sampling.learnt, len(dataset), seed=seed, rows_of_run=rows_of_run, tell=first)


def check_skip(trainer: Any) -> None:
    """Raises ConfigError for a resumed run that would not go on where it was."""
    goes_on = "coreset.sampling.learnt" if trainer._run.learnt is not None else "coreset.budget"
    if (trainer._run.learnt or trainer._run.budget) and trainer.args.ignore_data_skip:
        raise ConfigError(
            f"{goes_on} goes on with the pass over the data that a checkpoint is in. Found ignore_data_skip true, by "
            "which the epoch would begin again: leave it out."
        )


class LearntWatch(TrainerCallback):
    """After each optimizer step, on every rank alike and before a checkpoint is written, remembers what it taught.

    Args:
        trainer: whose run it is.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raises LossMismatchError where the losses of rows are not known."""
        run = self._trainer._run
        passes: LearntPasses | None = run.learnt
        if passes is None:
            return
        taught = None if run.step.losses is None else run.step.losses.taught
        if taught is None:
            raise unknown("coreset.sampling.learnt follows the training loss of each row", state.global_step)
        often = passes.weights_of(taught.ids) if run.step.claims.objective.corrects else torch.ones(())
        counts = taught.tokens if run.step.loss == "example_mean" else torch.ones(())
        passes.learn(taught.ids, taught.losses, taught.sizes * taught.factors / often / counts, taught.lengths)
