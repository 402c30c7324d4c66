"""A run that has made all its steps has nothing to do when it is resumed: the Trainer's loop would make one more."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import TrainOutput

from corebatch.errors import CheckpointError


class AlreadyDone(Exception):
    """The checkpoint that was loaded is of the last step."""


class StopBeforeTheFirst(TrainerCallback):
    """Ends training before it begins if the checkpoint has all steps. It should be the first callback, so that no
    tracker begins a run.

    Args:
        folder: of the checkpoint.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step > state.max_steps:
            raise CheckpointError(
                f"{self._folder} has made {state.global_step} steps, more than the {state.max_steps} that the run is "
                "to make. Raise max_steps or num_train_epochs, or resume from an earlier checkpoint."
            )
        if state.global_step == state.max_steps:
            raise AlreadyDone


def outcome(trainer: Any) -> TrainOutput:
    """What `train` returns of a run that was finished: model and state are the checkpoint's, or the best model's."""
    trainer.is_in_train = False
    if trainer.neftune_noise_alpha is not None:
        trainer.neftune_hook_handle.remove()
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
        trainer._load_best_model()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return TrainOutput(trainer.state.global_step, losses[-1] if losses else math.nan, {})
