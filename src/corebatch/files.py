"""Files that are there whole or not at all, and files of JSON lines."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from corebatch.errors import DataError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, to be written in the block: a reader finds the old file or the new one, never a
    part. Once the block has ended the content is on the disk; where it raises, the old file stays."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def plain(value: Any) -> Any:
    """Plain JSON: functions and other objects by their text, numbers that are none as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return plain(value.item()) if hasattr(value, "item") else str(value)


def write_json(path: Path, value: Any, **options: Any) -> None:
    """Write a value as indented JSON, whole or not at all; what JSON does not know is written as text."""
    write_text(path, json.dumps(value, indent=1, default=str, **options) + "\n")


def sync(path: Path) -> None:
    """Return once a file's content, or a folder's list of names, has reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines with their line numbers, from 1; blank lines are passed over. Raises
    DataError: the file or a line cannot be read; both are named."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} should be a readable JSONL file in UTF-8. Found: {error}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}:{number} should be JSON. Found: {error}.") from error
        if not isinstance(values, dict):
            raise DataError(f"{path}:{number} should be a JSON object. Found {type(values).__name__}.")
        yield number, values
