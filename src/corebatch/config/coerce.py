"""A value of the config as one of the type that its key has."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

from corebatch.config.bounds import shown
from corebatch.errors import ConfigError


def coerce(value: Any, annotation: Any, key: str) -> Any:
    """A value of the annotated type; numbers that YAML reads as text, such as 5e-4, become numbers. Raises ConfigError:
    the value is of another type; the key is named."""
    kinds = members(annotation)
    if value is None or Any in kinds:
        return value
    if isinstance(value, str) and not any(kind in kinds for kind in (str, dict, list)):
        for kind in (int, float):
            if kind in kinds:
                try:
                    value = kind(value)
                    break
                except ValueError:
                    continue
    literal = [kind for kind in kinds if not isinstance(kind, type)]
    if value in literal:
        return value
    simple = [kind for kind in kinds if kind in _NAMES]
    if simple and len(simple) + len(literal) == len([kind for kind in kinds if kind is not type(None)]):
        fits = any(
            isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            for kind in simple + ([int] if float in simple else [])
        )
        if not fits:
            wanted = " or ".join([_NAMES[kind] for kind in simple] + [repr(kind) for kind in literal])
            raise ConfigError(f"{key} should be {wanted}. Found {found_value(value)}.")
    elif literal and not simple:
        raise ConfigError(f"{key} should be one of {', '.join(map(repr, literal))}. Found {found_value(value)}.")
    return value


_NAMES = {bool: "bool", int: "int", float: "float", str: "str", list: "a list", dict: "a block of keys"}


def found_value(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = shown(value) if number else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def members(annotation: Any) -> list[Any]:
    """The alternatives of a union, literals as their values, generic types as their origins."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(annotation) for member in members(part)]
    if origin is Literal:
        return list(typing.get_args(annotation))
    return [origin or annotation]
