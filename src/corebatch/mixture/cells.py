"""One cell of a row, checked: strings, lists of integers, JSON in a string; and how messages show a cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from corebatch.errors import DataError
from corebatch.mixture.json_text import parse


def string(row: Mapping[str, Any], name: str, where: str) -> str:
    """The cell `name`, a string that a tokenizer takes. Raises DataError: another type, or half a surrogate pair."""
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(f"{where}: {name!r} should be a string. Found {describe(value)}.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: {name!r} holds half a surrogate pair at character {error.start}, which no tokenizer takes."
            ) from error
    return value


def integers(row: Mapping[str, Any], name: str, where: str) -> list[int]:
    """The cell `name`, a list of integers. Raises DataError: anything else."""
    values = row[name]
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping):
        raise DataError(f"{where}: {name!r} should be a list of integers. Found {describe(values)}.")
    values = list(values)
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool):
            raise DataError(f"{where}: {name!r} should be a list of integers. Found {describe(value)} in it.")
    return values


def parsed(value: Any, name: str, where: str) -> Any:
    """The value itself; from a string, as data sets store nested values, the JSON that it holds. Raises DataError: a
    string that is not JSON, or that has the same key twice in an object."""
    return parse(value, f"{where}, {name!r}", " A string should hold JSON here.") if isinstance(value, str) else value


def mappings(value: Any, name: str, where: str) -> list[dict[str, Any]]:
    """A list of mappings, or the JSON of one. Raises DataError: anything else."""
    value = parsed(value, name, where)
    value = [value] if isinstance(value, Mapping) else value
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise DataError(f"{where}: {name!r} should be a list of mappings, or the JSON of one. Found {describe(value)}.")
    return [dict(item) for item in value]


def given(value: Any) -> bool:
    """Whether a cell says something: not null or NaN, not blank, not an empty list or mapping."""
    if value is None or value != value:
        return False
    if isinstance(value, str):
        return bool(value.strip())
    return bool(value) if isinstance(value, list | tuple | Mapping) else True


def without_nulls(value: Any) -> Any:
    """The value without the nulls that Arrow fills into mappings of unlike keys, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def describe(value: Any) -> str:
    """The value and its type, short enough for a message."""
    if value is None:
        return "null"
    shown = repr(value)
    return f"{shown if len(shown) <= 40 else shown[:37] + '...'} ({type(value).__name__})"
