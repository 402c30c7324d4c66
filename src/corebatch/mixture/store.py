"""Tokenised rows on disk: written as they come, then mapped into memory as a `datasets.Dataset`.

A mixture of a million rows does not fit into memory as Python lists, and the cache of
`Dataset.from_generator` is keyed by its arguments, so that it would not notice a changed file. Hence a file
of our own, in a folder of `cache`; nothing is written beside the user's data.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import datasets
import pyarrow as pa  # type: ignore[import-untyped]

from corebatch.errors import DataError

SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("source", pa.string()),
        ("length", pa.int32()),
    ]
)
COLUMNS = tuple(SCHEMA.names)
FILE = "rows.arrow"


class RowStore:
    """Takes Arrow batches with the columns of SCHEMA, and writes them into a folder. A context manager. Raises
    DataError: the folder cannot be written, for instance since the disk is full."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        try:
            self._writer: Any = pa.ipc.new_stream(str(self._file), SCHEMA)
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> RowStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
        except OSError as full:
            if kind is None:
                raise self._failed(full) from full

    def append(self, batch: Any) -> None:
        """Writes one batch; an empty one is left out."""
        try:
            if batch.num_rows:
                self._writer.write_batch(batch)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> DataError:
        return DataError(
            f"{self._file.parent}: tokenised rows cannot be written: {error}. Make room, or name another folder by "
            "COREBATCH_CACHE (TMPDIR, if rows are not kept)."
        )


def mapped_rows(folder: Path) -> Any:
    """The rows that a RowStore wrote into a folder, as a `datasets.Dataset`; they are not read."""
    return datasets.Dataset.from_file(str(folder / FILE))


def row_sources(dataset: Any) -> list[str]:
    """The source of every row of a mixture; by Arrow, since `Dataset` reads a column row by row."""
    sources: list[str] = dataset.with_format("arrow", columns=["source"])[:].column("source").to_pylist()
    return sources
