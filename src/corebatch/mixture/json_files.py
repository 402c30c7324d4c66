"""JSON lines and JSON documents, read so that a broken line is named by its number.

A byte order mark, CRLF line ends and blank lines are accepted; columns may differ from row to row.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from corebatch.errors import DataError
from corebatch.mixture.rows import RawRow, RowReader

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked when its name ends in .gz."""
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def numbered_lines(path: Path, label: str) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes without line end) of every line that is not blank.

    Raises:
        DataError: the file cannot be read or unpacked.
    """
    number = 0
    try:
        with open_bytes(path) as stream:
            for number, line in enumerate(stream, start=1):
                if number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{label}, after line {number}: cannot be read: {error}.") from error


class JsonLinesReader(RowReader):
    """One JSON object a line."""

    def __init__(self, path: Path, label: str) -> None:
        self.path = path
        self.label = label

    def rows(self, keep: frozenset[str] | None = None) -> Iterator[RawRow]:
        for number, line in numbered_lines(self.path, self.label):
            yield RawRow(self.label, "line", number, self._parse(number, line))

    def count(self) -> int:
        return sum(1 for _ in numbered_lines(self.path, self.label))

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        where = f"{self.label}, line {number}"
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: is not UTF-8: {error.reason} at byte {error.start}.") from error
        except (json.JSONDecodeError, RecursionError) as error:
            column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise DataError(f"{where}: is not valid JSON: {reason}{column}. Found {_start(line)}.") from error
        if not isinstance(value, dict):
            raise DataError(f"{where}: should be a JSON object. Found {_start(line)}.")
        return value


class JsonDocumentReader(RowReader):
    """One JSON document: a list of objects, or an object with exactly one list of objects in it.

    The document is read as a whole. A file of JSON lines that is called .json is read as lines.
    """

    def __init__(self, path: Path, label: str) -> None:
        self.path = path
        self.label = label

    def rows(self, keep: frozenset[str] | None = None) -> Iterator[RawRow]:
        rows = self._document()
        if rows is None:
            yield from JsonLinesReader(self.path, self.label).rows(keep)
            return
        for number, value in enumerate(rows, start=1):
            if not isinstance(value, dict):
                raise DataError(f"{self.label}, row {number}: should be a JSON object. Found {type(value).__name__}.")
            yield RawRow(self.label, "row", number, value)

    def _document(self) -> list[Any] | None:
        """The list of rows; None when the file holds JSON lines instead."""
        content = self._content()
        if not content:
            return []
        try:
            document = json.loads(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{self.label}: is not UTF-8: {error.reason} at byte {error.start}.") from error
        except (json.JSONDecodeError, RecursionError) as error:
            if content.startswith(b"{") and _is_object(content.split(b"\n", 1)[0]):
                return None
            raise DataError(f"{self.label}: is not valid JSON: {error}.") from error
        if isinstance(document, dict):
            lists = [key for key, value in document.items() if isinstance(value, list)]
            if len(lists) == 1:
                document = document[lists[0]]
            elif not lists:  # a single row
                document = [document]
            else:
                raise DataError(
                    f"{self.label}: should be a list of objects, or an object with one list. "
                    f"Found the lists {', '.join(map(repr, lists))}."
                )
        if not isinstance(document, list):
            raise DataError(
                f"{self.label}: should be a list of objects, or an object with one list. "
                f"Found {type(document).__name__}."
            )
        return document

    def _content(self) -> bytes:
        try:
            with open_bytes(self.path) as stream:
                return stream.read().removeprefix(BYTE_ORDER_MARK).strip()
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self.label}: cannot be read: {error}.") from error


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _start(line: bytes) -> str:
    """The beginning of a line, short enough for a message."""
    text = line.decode("utf-8", errors="replace").strip()
    return repr(text if len(text) <= 60 else text[:57] + "...")
