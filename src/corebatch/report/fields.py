"""JSON objects as dataclasses, each field checked by its annotation; errors name the place and what was found."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, TypeVar

from corebatch.errors import DataError

T = TypeVar("T")


def parse(text: str | bytes, where: str) -> Any:
    """The JSON value of `text`, or a DataError that starts with `where`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = where if error.lineno == 1 else f"{where}, line {error.lineno}"
        raise DataError(f"{place}: not valid JSON ({error.msg}, column {error.colno}).") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({type(error).__name__}).") from error


def json_object(value: Any, where: str) -> dict[str, Any]:
    """The value, or a DataError if it is no JSON object."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: should be a JSON object. Found {_shown(value)}.")
    return value


def record(kind: type[T], value: Any, where: str, **given: Any) -> T:
    """A dataclass out of a JSON object.

    What is missing or null has its default, or is None where the annotation takes that; so has a number that is NaN or
    infinite, and an empty object that stands for a dataclass or None. A field may have another name in the object:
    `field(metadata={"key": ...})`. `given`: fields that are not the object's. Raises DataError: a field is missing or
    of another kind, or the dataclass refuses it with a ValueError.
    """
    found = json_object(value, where)
    for field, hint in _fields(typing.cast(Hashable, kind)):
        if field.name not in given:
            key = field.metadata.get("key", field.name)
            if (read := field_of(hint, found, key, where)) is not None:
                given[field.name] = read
            elif field.default is field.default_factory is dataclasses.MISSING:
                if type(None) not in typing.get_args(hint):
                    raise DataError(f"{where}: field {key!r} is missing.")
                given[field.name] = None
    try:
        return kind(**given)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def field_of(hint: Any, found: Mapping[str, Any], key: str, where: str) -> Any:
    """A field of an object as the type that it is annotated with; None if it says nothing, as in `record`."""
    return None if found.get(key) is None else _read(hint, found[key], key, where)


def is_not_finite(value: Any) -> bool:
    """Whether it is NaN or infinite."""
    return isinstance(value, float) and not math.isfinite(value)


@cache
def _fields(kind: Hashable) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(kind)
    return [(field, hints[field.name]) for field in dataclasses.fields(kind)]  # type: ignore[arg-type]


@cache
def _parts(hint: Hashable) -> tuple[Any, Any, tuple[Any, ...]]:
    """The type, without None, its origin and what is in its brackets."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (each for each in typing.get_args(hint) if each is not type(None))
    return hint, typing.get_origin(hint), typing.get_args(hint)


def _read(hint: Any, value: Any, key: str, where: str) -> Any:
    optional, (hint, origin, inner) = hint, _parts(hint)
    if origin is None and dataclasses.is_dataclass(hint):
        if value == {} and hint is not optional:
            return None
        if not isinstance(value, dict):
            raise _wrong(where, key, "an object", value)
        return record(hint, value, f"{where}{'.' if ': ' in where else ': '}{key}")  # type: ignore[arg-type]
    if origin is Mapping:
        if not isinstance(value, dict):
            raise _wrong(where, key, "an object", value)
        return value if inner[1] is Any else _read_all(inner[1], value, key, where)
    if origin is tuple:
        return _read_list(inner[0], value, key, where)
    if hint is bool:
        return bool(value)
    if hint is str and not isinstance(value, str):
        raise _wrong(where, key, "a string", value)
    if hint is int and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise _wrong(where, key, "a whole number, 0 or more", value)
    return _real(value, key, where) if hint is float else value


def _read_all(kind: Any, values: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """An object of one kind of values; of numbers those that are null or not finite are left out."""
    read = {
        name: _read(kind, found, f"{key}.{name}", where)
        for name, found in values.items()
        if found is not None or kind is not float
    }
    return {name: found for name, found in read.items() if found is not None}


def _read_list(kind: Any, value: Any, key: str, where: str) -> tuple[Any, ...]:
    """A list of one kind of values; a number by itself is a list of one."""
    value = [value] if kind is float and not isinstance(value, list) else value
    if not isinstance(value, list) or (kind is str and not all(isinstance(name, str) for name in value)):
        raise _wrong(where, key, "a list of names" if kind is str else "a list", value)
    if dataclasses.is_dataclass(kind):
        for each in value:
            json_object(each, f"{where}: {key}")
    read = tuple(_read(kind, each, f"{key}[{number}]", where) for number, each in enumerate(value))
    if None in read:
        raise DataError(f"{where}: field {key!r} should be finite numbers. Found {value!r}.")
    return read


def _real(value: Any, key: str, where: str) -> float | None:
    """A finite number; None for one that is not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(where, key, "a number", value)
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _wrong(where: str, key: str, wanted: str, found: Any) -> DataError:
    return DataError(f"{where}: field {key!r} should be {wanted}. Found {_shown(found)}.")


def _shown(value: Any) -> str:
    """The value itself when it is short, for messages; else its type."""
    text = repr(value)
    return text if len(text) <= 40 else f"{type(value).__name__} {text[:37]}..."
