"""What travels from the file readers to the formats: raw rows that know where they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it was read.

    Attributes:
        label: the file or data set, as messages call it.
        unit: "line" where the file has lines, else "row".
        number: counted from 1.
        values: column -> cell.
    """

    label: str
    unit: str
    number: int
    values: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"{self.label}, {self.unit} {self.number}"


class RowReader(ABC):
    """Streams the rows of one file or data set; holds no more than a block of them, JSON documents apart.

    Attributes:
        label: how messages call it.
        files: what the rows are read from, where that is files.
        identity: what else tells which rows these are; None where the files do, or nothing does.
        columns: all columns, where the file states them; None where every row has its own.
    """

    label: str
    files: tuple[Path, ...] = ()
    identity: str | None = None
    columns: tuple[str, ...] | None = None

    @abstractmethod
    def rows(self, keep: frozenset[str] | None = None) -> Iterator[RawRow]:
        """All rows in order. Columns outside `keep` may be left out (None: all are given). Raises DataError: naming the
        file and the line or row that cannot be read."""

    def count(self) -> int:
        """The number of rows; reads the file where it does not state it."""
        return sum(1 for _ in self.rows(frozenset()))


class FileReader(RowReader):
    """A reader of one file."""

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label, self.files = path, label, (path,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A run of rows of one reader, and the source that they have unless something else says so. `start`, `stop`:
    positions of the reader's rows, from 0, `stop` not included; None: to the end."""

    reader: RowReader
    default_source: str
    start: int = 0
    stop: int | None = None

    def rows(self, keep: frozenset[str] | None = None) -> Iterator[RawRow]:
        return islice(self.reader.rows(keep), self.start, self.stop)
