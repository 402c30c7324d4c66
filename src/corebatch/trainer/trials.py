"""Hyper-parameter search: what of a trial's parameters are settings of `coreset`.

A search's space names them `coreset.pool_factor` and so on, or by a field's own name where TrainingArguments has no
such field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from corebatch.errors import ConfigError
from corebatch.options import hint
from corebatch.trainer.config import CoresetConfig

PREFIX = "coreset."


def divided(params: Mapping[str, Any], args: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A trial's parameters: the Trainer's, and those of `coreset` by the names of its fields.

    Raises:
        ConfigError: `coreset.` before something that is no field.
    """
    known = [field.name for field in dataclasses.fields(CoresetConfig)]
    theirs, ours = {}, {}
    for key, value in params.items():
        name = key.removeprefix(PREFIX)
        if key.startswith(PREFIX) and name not in known:
            raise ConfigError(
                f"A trial may set {', '.join(PREFIX + field for field in known)}. Found {key!r}.{hint(name, known)}"
            )
        if key.startswith(PREFIX) or (name in known and not hasattr(args, name)):
            ours[name] = value
        else:
            theirs[key] = value
    return theirs, ours


@contextmanager
def coreset_of_trial(trainer: Any, trial: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """While open, the Trainer sees a trial without settings of `coreset`.

    Yields:
        The trial for the Trainer, and what is found for `coreset`, filled by the end.
    """
    if isinstance(trial, Mapping):  # Ray and W&B
        theirs, ours = divided(trial, trainer.args)
        yield theirs, ours
        return
    space, found = getattr(trainer, "hp_space", None), dict[str, Any]()
    if trial is None or space is None:
        yield trial, found
        return

    def without(trial: Any) -> dict[str, Any]:
        theirs, ours = divided(space(trial), trainer.args)
        found.update(ours)
        return theirs

    trainer.hp_space = without
    try:
        yield trial, found
    finally:
        trainer.hp_space = space
