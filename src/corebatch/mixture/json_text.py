"""JSON text -> values, strictly; every error says where."""

from __future__ import annotations

import json
from typing import Any

from corebatch.errors import DataError

TURN_KEYS = (("role", "content", "messages"), ("from", "value", "conversations"))
"""Who speaks and what, in the two ways to write a turn, and the column that such turns stand in."""


def parse(text: str, where: str, advice: str = "") -> Any:
    """The value of a JSON text. NaN and Infinity, which are no JSON but which Python writes, are taken. Raises
    DataError: it is not JSON, is nested too deeply, has a number of thousands of digits, or an object with the same key
    twice."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if "\n" not in text else f"line {error.lineno}, column {error.colno}"
        reason = f"{error.msg} at {place}"
    except RecursionError:
        reason = "nested too deeply"
    except _SameKey as error:
        raise DataError(
            f"{where}: has the key {error.key!r} twice in one object, so one value would be lost."
        ) from error
    except ValueError as error:  # Python's bound on the digits of an integer
        reason = str(error)
    raise DataError(f"{where}: is not valid JSON: {reason}. Found {shown(text)}.{advice}")


def rows_of(value: Any) -> list[Any] | None:
    """A conversation or a list -> its rows; None if the value is neither.

    A list of turns is one row; a list of lists of turns is a row each; any other list is the list of its rows.
    """
    if isinstance(value, list):
        column = turns_column(value)
        if column is not None:
            return [{column: value}]
        return [{inside: row} if (inside := turns_column(row)) else row for row in value]
    return None


def turns_column(value: Any) -> str | None:
    """The column that a list of turns belongs into; None if the value is no such list."""
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        return None
    for speaker, content, column in TURN_KEYS:
        if all(speaker in turn for turn in value) and any(content in turn for turn in value):
            return column
    return None


def shown(text: str) -> str:
    """The beginning of a text, short enough for a message."""
    start = text[:64].strip()
    return repr(start if len(start) <= 60 and len(text) <= 64 else start[:57] + "...")


class _SameKey(Exception):
    def __init__(self, key: str) -> None:
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise _SameKey(next(name for name in names if names.count(name) > 1))
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
