"""Rows that are learnt, left out of a pass: one method a file, one dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corebatch.errors import ConfigError
from corebatch.options import build
from corebatch.sampling.learnt.base import WHAT, Known, LearntRows, PassRows
from corebatch.sampling.learnt.by_size import BySize
from corebatch.sampling.learnt.floor import Floor
from corebatch.sampling.learnt.infobatch import InfoBatch
from corebatch.sampling.learnt.seta import SeTa
from corebatch.sampling.learnt.tail import Tail

LEARNT: dict[str, type[LearntRows]] = {method.name: method for method in (BySize, InfoBatch, SeTa, Tail, Floor)}

__all__ = ["LEARNT", "Known", "LearntRows", "PassRows", "make_learnt"]


def make_learnt(value: Any) -> LearntRows:
    """A method by its name, a mapping of the key `method` and its options, or an instance as it is.

    Raises:
        ConfigError: the name or an option is unknown, or an option's value is out of range.
    """
    if isinstance(value, Mapping):
        options = dict(value)
        if "method" not in options:
            raise ConfigError(f"{WHAT} should name a method: {', '.join(LEARNT)}. Found {value!r}.")
        return build(WHAT, options.pop("method"), options, LEARNT, LearntRows)
    return build(WHAT, value, None, LEARNT, LearntRows)
