"""Options of strategies: fields that say what a value should be, in the order in which they are written."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

from corebatch.errors import ConfigError

SHARED = ("rows", "reuse", "reuse_place", "reuse_gb")
"""Options that are written after a strategy's own."""


def option(default: Any, words: str, allowed: Callable[[Any], bool]) -> Any:
    """A field of a strategy.

    Args:
        words: what a value should be.
        allowed: whether a value is that.
    """
    return dataclasses.field(default=default, metadata={"words": words, "allowed": allowed})


def whole(default: Any, least: int) -> Any:
    """An integer of at least `least`, or the default if that is none."""

    def allowed(value: Any) -> bool:
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return fits or (not isinstance(default, int) and value == default)

    return option(default, f"an integer of at least {least}", allowed)


def one_of(default: Any, *choices: Any) -> Any:
    """One of some words, True and False."""

    def allowed(value: Any) -> bool:
        return any(value is choice or (isinstance(value, str) and value == choice) for choice in choices)

    return option(default, " or ".join(map(str, choices)), allowed)


def is_number(value: Any) -> bool:
    """Whether it is an integer or a float, and neither True nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def check_option(option: dataclasses.Field[Any], value: Any) -> None:
    """Raises ConfigError for a value out of range."""
    if not option.metadata["allowed"](value):
        raise ConfigError(f"coreset.scoring.{option.name} should be {option.metadata['words']}. Found {value!r}.")


def option_names(kind: type) -> list[str]:
    """Names of a strategy's options, its own first."""
    fields = {field.name for field in dataclasses.fields(kind)}
    names = [name for base in kind.__mro__ for name in inspect.get_annotations(base) if name in fields]
    return sorted(names, key=lambda name: SHARED.index(name) if name in SHARED else -1)
