"""JSON lines and JSON documents, read so that a broken line is named by its number.

A byte order mark, CRLF line ends and blank lines are accepted; columns may differ from row to row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from corebatch.errors import DataError
from corebatch.mixture.formats import FORMS
from corebatch.mixture.json_text import parse, rows_of, shown, turns_column
from corebatch.mixture.opening import (
    AT_ONCE,
    BYTE_ORDER_MARK,
    LARGEST_ROW,
    UNREADABLE,
    decoded,
    numbered_lines,
    open_bytes,
    whole_content,
)
from corebatch.mixture.rows import FileReader, RawRow

_A_DOCUMENT = " The file seems to be one JSON document over many lines: call it .json."


class JsonLinesReader(FileReader):
    """One JSON object a line; a line that holds a list of objects is as many rows, one of turns a conversation."""

    def rows(self, keep: frozenset[str] | None = None) -> Iterator[RawRow]:
        for number, line in self._lines():
            value = self._value(number, line)
            if isinstance(value, dict):
                yield RawRow(self.label, "line", number, value)
                continue
            for place, row in enumerate(value, start=1):
                if not isinstance(row, dict):
                    raise DataError(f"{self.label}, line {number}: should be a JSON object. Found {_start(line)}.")
                yield RawRow(self.label, f"line {number}, row", place, row)

    def count(self) -> int:
        return sum(1 if line[:1] != b"[" else len(self._value(number, line)) for number, line in self._lines())

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        for number, line in numbered_lines(self.path, self.label):
            if stripped := line.strip():
                yield number, stripped

    def _value(self, number: int, line: bytes) -> dict[str, Any] | list[Any]:
        where = f"{self.label}, line {number}"
        value = parse(decoded(line, where), where, _A_DOCUMENT if line in (b"[", b"{", b"[{") else "")
        rows = value if isinstance(value, dict) else rows_of(value)
        if rows is None:
            raise DataError(f"{where}: should be a JSON object. Found {_start(line)}.")
        return rows


class JsonDocumentReader(FileReader):
    """One JSON document: a list of rows, one row, or an object with exactly one list of rows in it.

    The document is read as a whole. A file of JSON lines that is called .json is read as lines.
    """

    def rows(self, keep: frozenset[str] | None = None) -> Iterator[RawRow]:
        if self._holds_lines():
            yield from JsonLinesReader(self.path, self.label).rows(keep)
            return
        for number, value in enumerate(self._document(), start=1):
            if not isinstance(value, dict):
                raise DataError(f"{self.label}, row {number}: should be a JSON object. Found {type(value).__name__}.")
            yield RawRow(self.label, "row", number, value)

    def _holds_lines(self) -> bool:
        """Whether the first line is an object by itself, and others follow."""
        try:
            with open_bytes(self.path) as stream:
                while (first := stream.readline(LARGEST_ROW)) and not first.strip():
                    pass
                return _is_object(first) and any(block.strip() for block in iter(lambda: stream.read(AT_ONCE), b""))
        except UNREADABLE as error:
            raise DataError(f"{self.label}: cannot be read: {error}.") from error

    def _document(self) -> list[Any]:
        content = whole_content(self.path, self.label)
        if not content:
            return []
        document = parse(decoded(content, self.label), self.label)
        if isinstance(document, dict):
            return _rows_in(document, self.label)
        rows = rows_of(document)
        if rows is None:
            raise DataError(
                f"{self.label}: should be a list of objects, or an object with one list. "
                f"Found {type(document).__name__}."
            )
        return rows


def _rows_in(document: dict[str, Any], label: str) -> list[Any]:
    """The one list of rows in an object; or the object itself, if it is a row."""
    lists = {key: value for key, value in document.items() if isinstance(value, list)}
    known = [key for key, value in lists.items() if value and isinstance(value[0], dict) and _fits_a_form(value[0])]
    is_row = _fits_a_form(document)
    if is_row and known:
        raise DataError(
            f"{label}: may be one row, or hold rows in {known[0]!r}. Write the rows as JSON lines (.jsonl)."
        )
    if is_row or not lists or (len(lists) == 1 and turns_column(*lists.values())):
        return [document]
    chosen = known or list(lists)
    if len(chosen) > 1:
        raise DataError(
            f"{label}: should be a list of objects, or an object with one list. "
            f"Found the lists {', '.join(map(repr, chosen))}."
        )
    return rows_of(lists[chosen[0]]) or []


def _fits_a_form(row: dict[str, Any]) -> bool:
    return any(all(column in row for column in form.columns) for form in FORMS)


def _is_object(line: bytes) -> bool:
    text = line.removeprefix(BYTE_ORDER_MARK).lstrip()
    try:
        return text.startswith(b"{") and isinstance(parse(text.decode(), ""), dict)
    except (DataError, UnicodeDecodeError):
        return False


def _start(line: bytes) -> str:
    return shown(line.decode("utf-8", errors="replace"))
