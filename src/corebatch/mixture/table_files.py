"""Readers of tables: CSV, Parquet, and `datasets.Dataset` objects (saved folders, the hub)."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from corebatch.errors import DataError
from corebatch.mixture.json_files import open_bytes
from corebatch.mixture.rows import RawRow, RowReader

ROWS_AT_ONCE = 1000
LARGEST_CELL = 2**31 - 1  # characters; Python's own limit for CSV is 131,072


class CsvReader(RowReader):
    """Comma-separated, first line the column names; every cell is a string. A row's line is its last one."""

    def __init__(self, path: Path, label: str) -> None:
        self.path = path
        self.label = label

    def rows(self, keep: frozenset[str] | None = None) -> Iterator[RawRow]:
        previous_limit = csv.field_size_limit(LARGEST_CELL)
        line = 0
        try:
            with io.TextIOWrapper(open_bytes(self.path), encoding="utf-8-sig", newline="") as stream:
                table = csv.reader(stream, strict=True)
                header = self._header(next(table, []))
                line = table.line_num
                for cells in table:
                    line = table.line_num
                    if not cells:
                        continue
                    if len(cells) != len(header):
                        raise DataError(
                            f"{self.label}, line {line}: should have {len(header)} cells, as the first line. "
                            f"Found {len(cells)}."
                        )
                    yield RawRow(self.label, "line", line, dict(zip(header, cells, strict=True)))
        except UnicodeDecodeError as error:
            raise DataError(f"{self.label}, after line {line}: is not UTF-8: {error.reason}.") from error
        except (csv.Error, OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self.label}, after line {line}: cannot be read: {error}.") from error
        finally:
            csv.field_size_limit(previous_limit)

    def _header(self, names: list[str]) -> list[str]:
        names = [name.strip() for name in names]
        if len(set(names)) != len(names):
            raise DataError(f"{self.label}, line 1: column names should differ. Found {', '.join(names)}.")
        return names


class ParquetReader(RowReader):
    """A Parquet file, read block by block; nothing is copied to a cache."""

    def __init__(self, path: Path, label: str) -> None:
        self.path = path
        self.label = label
        try:
            with pq.ParquetFile(path) as file:
                self.columns = tuple(file.schema_arrow.names)
                self._count = int(file.metadata.num_rows)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{label}: is not a readable Parquet file: {error}.") from error

    def rows(self, keep: frozenset[str] | None = None) -> Iterator[RawRow]:
        number = 0
        try:
            with pq.ParquetFile(self.path) as file:
                wanted = _wanted(self.columns, keep)
                for block in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted):
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

    def rows(self, keep: frozenset[str] | None = None) -> Iterator[RawRow]:
        # Only what is asked for is decoded: a column of images must not be opened on the way.
        table = self.dataset.with_format(None).select_columns(_wanted(self.columns, keep))
        number = 0
        for block in table.iter(batch_size=ROWS_AT_ONCE):
            names = list(block)
            for cells in zip(*block.values(), strict=True):
                number += 1
                yield RawRow(self.label, "row", number, dict(zip(names, cells, strict=True)))

    def count(self) -> int:
        return len(self.dataset)


def load_saved(path: Path, label: str) -> Any:
    """The Dataset or DatasetDict in a folder written by `save_to_disk`.

    Raises:
        DataError: the folder is incomplete or not readable.
    """
    try:
        return datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{label}: is not a readable folder of save_to_disk: {error}.") from error


def _wanted(columns: tuple[str, ...] | None, keep: frozenset[str] | None) -> list[str]:
    """The columns to read, in the file's order; all if none is in `keep`, so that rows are counted."""
    names = list(columns or ())
    chosen = names if keep is None else [name for name in names if name in keep]
    return chosen or names
