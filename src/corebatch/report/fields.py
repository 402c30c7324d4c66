"""Checked access to the fields of a JSON object; errors name the place and what was found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from corebatch.errors import DataError


def parse(text: str | bytes, where: str) -> Any:
    """The JSON value of `text`, or a DataError that starts with `where`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = where if error.lineno == 1 else f"{where}, line {error.lineno}"
        raise DataError(f"{place}: not valid JSON ({error.msg}, column {error.colno}).") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({type(error).__name__}).") from error


class Fields:
    """A JSON object whose fields are asked for by kind."""

    def __init__(self, value: Any, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            raise DataError(f"{where}: should be a JSON object. Found {_kind(value)}.")
        self.value: dict[str, Any] = value

    def count(self, key: str) -> int:
        """A required whole number, 0 or more."""
        found = self.count_or_none(key)
        if found is None:
            raise DataError(f"{self.where}: field {key!r} is missing.")
        return found

    def count_or_none(self, key: str) -> int | None:
        """A whole number, 0 or more; None when the field is missing or null."""
        found = self.value.get(key)
        return None if found is None else self._whole(key, found)

    def number(self, key: str) -> float | None:
        """A finite number; None when the field is missing, null, NaN or infinite."""
        found = self.value.get(key)
        if found is None:
            return None
        number = self._real(key, found)
        return number if math.isfinite(number) else None

    def is_not_finite(self, key: str) -> bool:
        """Whether the field is there and NaN or infinite."""
        found = self.value.get(key)
        return isinstance(found, float) and not math.isfinite(found)

    def counts(self, key: str) -> dict[str, int]:
        """An object of whole numbers; empty when the field is missing or null."""
        return {name: self._whole(f"{key}.{name}", found) for name, found in self.object(key).items()}

    def numbers(self, key: str) -> dict[str, float]:
        """An object of finite numbers, without those that are null; empty when the field is missing."""
        values = {name: v for name, v in self.object(key).items() if v is not None}
        numbers = {name: self._real(f"{key}.{name}", found) for name, found in values.items()}
        return {name: number for name, number in numbers.items() if math.isfinite(number)}

    def text(self, key: str) -> str | None:
        """A string; None when the field is missing or null."""
        found = self.value.get(key)
        if found is not None and not isinstance(found, str):
            raise DataError(f"{self.where}: field {key!r} should be a string. Found {_kind(found)}.")
        return found

    def names(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty when the field is missing or null."""
        found = self.value.get(key)
        if found is None:
            return ()
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise DataError(f"{self.where}: field {key!r} should be a list of names. Found {_kind(found)}.")
        return tuple(found)

    def list(self, key: str) -> list[Any]:
        """A list; empty when the field is missing or null."""
        found = self.value.get(key)
        if found is None:
            return []
        if not isinstance(found, list):
            raise DataError(f"{self.where}: field {key!r} should be a list. Found {_kind(found)}.")
        return found

    def object(self, key: str) -> Mapping[str, Any]:
        """An object; empty when the field is missing or null."""
        found = self.value.get(key)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise DataError(f"{self.where}: field {key!r} should be an object. Found {_kind(found)}.")
        return found

    def _whole(self, key: str, found: Any) -> int:
        if isinstance(found, bool) or not isinstance(found, int) or found < 0:
            message = f"{self.where}: field {key!r} should be a whole number, 0 or more. Found {_kind(found)}."
            raise DataError(message)
        return found

    def _real(self, key: str, found: Any) -> float:
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            raise DataError(f"{self.where}: field {key!r} should be a number. Found {_kind(found)}.")
        try:
            return float(found)
        except OverflowError:
            return math.inf


def _kind(value: Any) -> str:
    """The value itself when it is short, for messages; else its type."""
    text = repr(value)
    return text if len(text) <= 40 else f"{type(value).__name__} {text[:37]}..."
