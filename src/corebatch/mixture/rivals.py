"""Columns of one form beside another's: they may say the same (UltraChat's `prompt`), or would be lost."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from corebatch.errors import DataError

CONTENTS = ("messages", "conversations", "prompt", "completion", "instruction", "input", "output", "text")
"""The columns by which forms say what is read and trained."""


def refuse_rivals(values: Mapping[str, Any], used: Collection[str], form: str, where: str) -> None:
    """Raises DataError where a column of another form says something that the row's own columns do not.

    White space aside, each of its texts should stand in the row's, or hold all of them, as the `text` of Alpaca does,
    which is the row with a template around it.

    Args:
        values: the row's cells.
        used: the columns that the row's form uses.
        form: its name.
    """
    for name in CONTENTS:
        if name in used or name not in values:
            continue
        own = [text for column in CONTENTS if column in used for text in _texts(values.get(column))]
        everything = "".join(own)
        for text in _texts(values[name]):
            if text not in everything and not (own and all(part in text for part in own)):
                raise DataError(
                    f"{where}: the column {name!r} says something that the columns of the form {form} do not, and "
                    f"would be lost. If it belongs to the row, write it there; or leave it out on purpose: "
                    f"`ignore_columns: [{name}]` of the data set."
                )


def _texts(cell: Any) -> Iterator[str]:
    """The texts of a cell, without white space: a string, turns, or parts of turns."""
    if isinstance(cell, str):
        if text := "".join(cell.split()):
            yield text
    elif isinstance(cell, list):
        for item in cell:
            yield from _texts(item)
    elif isinstance(cell, Mapping):
        for key in ("content", "value", "text"):
            yield from _texts(cell.get(key))
