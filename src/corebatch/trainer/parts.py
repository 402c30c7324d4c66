"""A micro-batch in parts, where a cap on positions asks for more micro-batches than the Trainer's loop trains: each of
the loop's has further ones with it, which are trained before it, and whose losses are added to its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import ConfigError, CorebatchError
from corebatch.trainer.engine import sharded
from corebatch.trainer.in_backward import updates_in_backward
from corebatch.trainer.own_loss import own_methods

FURTHER = "corebatch_further"
"""Key of a micro-batch: what is trained with it."""


class MemoryRanOutError(CorebatchError, torch.OutOfMemoryError):
    """Memory ran out in training; the message says of what, and how a micro-batch becomes smaller."""


@dataclass(frozen=True, slots=True)
class Further:
    """Micro-batches that are trained with another; no mapping, so that nobody takes them for its tensors."""

    batches: Sequence[dict[str, Any]]


def check_parts(trainer: Any) -> None:
    """Checks, before anything is trained, that a micro-batch may be trained in parts.

    Raises:
        ConfigError: an engine, an optimizer or a method with which a step's parts would not add up.
    """
    what = "coreset.micro_batches.most may train a micro-batch in parts"
    cure = "Leave `most` out, and lower per_device_train_batch_size where memory runs out."
    if trainer.coreset.budget is not None:
        what = "coreset.budget may train more micro-batches than the Trainer's loop asks for"
        cure = "Leave it out."
    elif trainer.coreset.cut.most is None:
        return
    engine, moved = sharded(trainer), None if trainer.model is None else updates_in_backward(trainer)
    owned = own_methods(trainer, ("training_step",))
    for found, why in (
        (engine, "counts micro-batches itself"),
        (moved, "updates weights inside backward, so that a step has one micro-batch"),
        (owned and owned[0], "trains micro-batches itself"),
    ):
        if found:
            raise ConfigError(f"{what}. Found {found}, which {why}. {cure}")


def folded(made: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` micro-batches that hold all that were made, `count` or more, in their order."""
    parts = [made[len(made) * k // count : len(made) * (k + 1) // count] for k in range(count)]
    return [{**last, FURTHER: Further(rest)} if rest else last for *rest, last in parts]


def unfolded(batches: Iterable[Any]) -> list[Any]:
    """Every micro-batch that is trained, of those that the Trainer's loop gets."""
    return [part for batch in batches for part in (*(batch[FURTHER].batches if FURTHER in batch else ()), batch)]


def train_parts(trainer: Any, model: Any, inputs: Any, train: Callable[[Any], Tensor]) -> Tensor:
    """Trains a micro-batch and what is with it, and returns the sum of their losses; ranks exchange gradients with the
    last alone, if the Trainer wants it then.

    Args:
        model: as the Trainer trains it, perhaps wrapped.
        train: the Trainer's training step.
    """
    further = inputs.pop(FURTHER, None) if isinstance(inputs, dict) else None
    losses, noise = [], trainer._run.noise
    noise.listen()
    for part in () if further is None else further.batches:
        with trainer.accelerator.no_sync(model=model), _memory_told(part):
            losses.append(train(part))
        noise.end_part()
        trainer.current_flos += float(trainer.floating_point_ops(part))
        if hasattr(trainer, "_track_num_input_tokens"):  # transformers 4 counts in its loop
            trainer._track_num_input_tokens(part)
    with _memory_told(inputs):
        loss = train(inputs)
    noise.end_part(last=trainer.accelerator.sync_gradients)
    return torch.stack([*losses, loss]).sum() if losses else loss


@contextmanager
def _memory_told(inputs: Any) -> Iterator[None]:
    """An error of the device's memory within says how large the micro-batch was, and which key makes it smaller."""
    ids = inputs.get("input_ids") if isinstance(inputs, dict) else None
    shape = tuple(ids.shape) if isinstance(ids, Tensor) and ids.ndim == 2 else None
    packed = shape is not None and inputs.get("use_cache") is False  # rows one behind the other
    try:
        yield
    except torch.OutOfMemoryError as error:
        if shape is None or isinstance(error, CorebatchError):
            raise
        rows, width = shape
        most = rows * width // 2 if packed else max(width, rows * width // 2)
        cure = f"set coreset.micro_batches to {{by: positions, most: {most}}}, which trains the same update"
        if rows == 1 and not packed:
            cure = "one row alone is too much: lower max_length, or switch gradient_checkpointing on"
        what = f"a micro-batch of {rows} x {width} = {rows * width:,} positions"
        raise MemoryRanOutError(f"{error} Memory ran out in training {what}: {cure}.") from error
