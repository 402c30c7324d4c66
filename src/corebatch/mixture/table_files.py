"""Readers of tables: CSV and TSV, Parquet, Arrow, and `datasets.Dataset` objects (saved folders, the hub)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from corebatch.errors import DataError
from corebatch.mixture.opening import LARGEST_ROW, decoded, instead, numbered_lines
from corebatch.mixture.rows import FileReader, RawRow, RowReader

ROWS_AT_ONCE = 1000


class CsvReader(FileReader):
    """Comma- or tab-separated, first line the column names; every cell is a string. A row's line is its last one.

    Columns without a name, as Excel and pandas write them, are called "column 3" and so on, and left out of the rows
    where their cell is empty.
    """

    def __init__(self, path: Path, label: str, separator: str = ",") -> None:
        super().__init__(path, label)
        self.separator = separator

    def rows(self, keep: frozenset[str] | None = None) -> Iterator[RawRow]:
        previous_limit = csv.field_size_limit(LARGEST_ROW)  # Python's own is 131,072 characters
        line = 0
        try:
            table = csv.reader(self._lines(), strict=True, delimiter=self.separator)
            header = self._header(next(table, []))
            line = table.line_num
            for cells in table:
                line = table.line_num
                if cells:
                    yield RawRow(self.label, "line", line, self._row(header, cells, line))
        except csv.Error as error:
            quote = (
                " A cell that begins with a quotation mark should end with one." if "end of data" in str(error) else ""
            )
            raise DataError(f"{self.label}, after line {line}: cannot be read: {error}.{quote}") from error
        finally:
            csv.field_size_limit(previous_limit)

    def _lines(self) -> Iterator[str]:
        number = 0
        for _, line in numbered_lines(self.path, self.label):
            text = decoded(line, f"{self.label}, line {number + 1}")
            for piece in io.StringIO(text, newline="") if "\r" in text[:-2] else (text,):  # ends of old Macs
                number += 1
                yield piece

    def _header(self, names: list[str]) -> list[str]:
        names = [name.strip() for name in names]
        if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
            raise DataError(
                f"{self.label}, line 1: should be column names separated by {self.separator!r}. Found {names[0]!r}: "
                "save the table with commas (.csv) or tabs (.tsv)."
            )
        named = [name for name in names if name]
        if len(set(named)) != len(named):
            raise DataError(f"{self.label}, line 1: column names should differ. Found {', '.join(names)}.")
        return names

    def _row(self, header: list[str], cells: list[str], line: int) -> dict[str, str]:
        needed = max((i for i, name in enumerate(header, start=1) if name), default=0)
        if len(cells) < needed or any(cells[len(header) :]):
            raise DataError(
                f"{self.label}, line {line}: should have {len(header)} cells, as the first line. Found {len(cells)}."
            )
        named = zip(header, cells, strict=False)
        return {name or f"column {i}": cell for i, (name, cell) in enumerate(named, start=1) if name or cell}


class ParquetReader(FileReader):
    """A Parquet file, read block by block; nothing is copied to a cache."""

    def __init__(self, path: Path, label: str) -> None:
        super().__init__(path, label)
        try:
            with pq.ParquetFile(path) as file:
                self.columns = tuple(file.schema_arrow.names)
                self._count = int(file.metadata.num_rows)
            if twice := next((name for name in self.columns if self.columns.count(name) > 1), None):
                raise DataError(f"{label}: has two columns {twice!r}, so one of them would be lost.")
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{label}: is not a readable Parquet file: {error}.{instead(path)}") from error

    def rows(self, keep: frozenset[str] | None = None) -> Iterator[RawRow]:
        number = 0
        try:
            with pq.ParquetFile(self.path) as file:
                wanted = _wanted(self.columns, keep)
                for block in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted):
                    block.validate(full=True)
                    for values in block.to_pylist():
                        number += 1
                        yield RawRow(self.label, "row", number, values)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.label}, after row {number}: cannot be read: {error}.") from error

    def count(self) -> int:
        return self._count


class DatasetReader(RowReader):
    """A `datasets.Dataset`, read block by block; formats set on it are ignored."""

    def __init__(self, dataset: Any, label: str) -> None:
        self.dataset = dataset
        self.label = label
        self.columns = tuple(dataset.column_names)
        self.files = tuple(dict.fromkeys(Path(file["filename"]) for file in dataset.cache_files))
        self.identity = getattr(dataset, "_fingerprint", None)  # of slices as well, which have the same files

    def rows(self, keep: frozenset[str] | None = None) -> Iterator[RawRow]:
        # Only what is asked for is decoded: a column of images must not be opened on the way.
        table = self.dataset.with_format(None).select_columns(_wanted(self.columns, keep))
        number = 0
        try:
            table.data.validate(full=True)  # a damaged file may point anywhere in memory
            for block in table.iter(batch_size=ROWS_AT_ONCE):
                names = list(block)
                for cells in zip(*block.values(), strict=True):
                    number += 1
                    yield RawRow(self.label, "row", number, dict(zip(names, cells, strict=True)))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.label}, after row {number}: cannot be read: {error}.") from error

    def count(self) -> int:
        return len(self.dataset)


class ArrowReader(DatasetReader):
    """An Arrow file, as `datasets` writes them."""

    def __init__(self, path: Path, label: str) -> None:
        try:
            super().__init__(datasets.Dataset.from_file(str(path)), label)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{label}: is not a readable Arrow file: {error}.{instead(path)}") from error


class FolderColumnsReader(RowReader):
    """Another reader's rows with the columns that its folders state (`lang=de/part-0.parquet`).

    Args:
        inner: its rows' own columns win.
        stated: column -> value.
    """

    def __init__(self, inner: RowReader, stated: dict[str, str | None]) -> None:
        self.inner, self.stated = inner, stated
        self.label, self.files, self.identity = inner.label, inner.files, inner.identity
        if inner.columns is not None:
            self.columns = tuple(dict.fromkeys((*inner.columns, *stated)))

    def rows(self, keep: frozenset[str] | None = None) -> Iterator[RawRow]:
        for raw in self.inner.rows(keep):
            yield RawRow(raw.label, raw.unit, raw.number, {**self.stated, **raw.values})

    def count(self) -> int:
        return self.inner.count()


def load_saved(path: Path, label: str) -> Any:
    """The Dataset or DatasetDict in a folder written by `save_to_disk`. Raises DataError: the folder is incomplete or
    not readable."""
    try:
        return datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{label}: is not a readable folder of save_to_disk: {error}.") from error


def _wanted(columns: tuple[str, ...] | None, keep: frozenset[str] | None) -> list[str]:
    """The columns to read, in the file's order; all if none is in `keep`, so that rows are counted."""
    names = list(columns or ())
    chosen = names if keep is None else [name for name in names if name in keep]
    return chosen or names
