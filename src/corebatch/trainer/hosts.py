"""What others do to a Trainer that selection depends on: methods that are replaced, optimizers that swap weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from corebatch.errors import UNTOUCHED, ConfigError
from corebatch.types import ID

CHANGED = (
    "Weights were changed after the pool was scored and before it was trained (by a callback's on_step_begin, for "
    "instance): such steps run their forward again."
)
BETWEEN = ("training_step", "_prepare_inputs")
_KNOWN = ("transformers", "trl", "corebatch", "accelerate")


def training_weights(optimizer: Any) -> None:
    """Has an optimizer with two sets of weights (schedule-free) give those that are trained, as the Trainer does before
    each training forward: after an evaluation the others are in the model."""
    switch = getattr(optimizer, "train", None)
    if callable(switch):
        switch()


def runs_between(trainer: Any) -> bool:
    """Whether somebody's own code runs between scoring and training, which may change weights unseen."""
    callbacks = [type(callback) for callback in trainer.callback_handler.callbacks]
    began = [kind.on_step_begin for kind in callbacks if kind.on_step_begin is not TrainerCallback.on_step_begin]
    own = [vars(kind)[name] for kind in type(trainer).__mro__ for name in BETWEEN if name in vars(kind)]
    modules = [str(getattr(place, "__module__", "")).split(".")[0] for place in (*began, *own)]
    return any(module not in _KNOWN for module in modules) or any(name in vars(trainer) for name in BETWEEN)


def check_tagged(trainer: Any, batches: Sequence[Any]) -> None:
    """Raises ConfigError for batches without ids: they do not come from our loader and collator."""
    for batch in batches:
        if not isinstance(batch, Mapping) or ID not in batch:
            raise ConfigError(
                f"Every batch of the train loader carries the ids of its examples, by which rows are chosen and put "
                f"together anew. Found none: {who(trainer, 'get_train_dataloader')} made the loader. It should call "
                "super().get_train_dataloader(), and leave the Trainer's train_dataset and data_collator in place."
            )


def check_chosen(trainer: Any, chosen: bool) -> None:
    """Raises ConfigError, before any weight is moved, for a step whose batches we have not chosen."""
    if not chosen:
        raise ConfigError(
            "The batches of a step are chosen in get_batch_samples. Found that "
            f"{who(trainer, 'get_batch_samples')} gave them, so that nothing was chosen or put together anew. It "
            f"should call super().get_batch_samples(), or train with the plain Trainer ({UNTOUCHED})."
        )


def who(trainer: Any, name: str) -> str:
    """Where the method that runs was written: of the instance, or of which class and module."""
    method = getattr(trainer, name)
    function = getattr(method, "__func__", method)
    place = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__name__)}"
    return f"{name} of the instance ({place})" if name in vars(trainer) else place
