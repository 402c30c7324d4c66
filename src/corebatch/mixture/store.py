"""Tokenised rows: made of a run of examples, written to disk as they come, then mapped into memory as a `Dataset`.

A mixture of a million rows does not fit into memory as Python lists, and the cache of
`Dataset.from_generator` is keyed by its arguments, so that it would not notice a changed file. Hence a file
of our own, in a folder of `cache`; nothing is written beside the user's data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from corebatch.errors import ConfigError, DataError
from corebatch.mixture.examples import Example
from corebatch.mixture.tokenise import Tokeniser, TokenRow

SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("source", pa.string()),
        ("length", pa.int32()),
    ]
)
COLUMNS = tuple(SCHEMA.names)


def schema(weight_column: str | None) -> Any:
    """The columns of a mixture's rows; how much each counts under the name of its column. Raises ConfigError: the name
    is one of the others."""
    if weight_column is None:
        return SCHEMA
    if weight_column in COLUMNS:
        raise ConfigError(f"coreset.weight_column should be none of {', '.join(COLUMNS)}. Found {weight_column!r}.")
    return SCHEMA.append(pa.field(weight_column, pa.float64()))


FILE = "rows.arrow"

Integers = NDArray[np.int32]


class RowStore:
    """Takes Arrow batches with the columns of `schema`, and writes them into a folder. A context manager. Raises
    DataError: the folder cannot be written, for instance since the disk is full."""

    def __init__(self, folder: Path, weight_column: str | None = None) -> None:
        self._file, columns = folder / FILE, schema(weight_column)
        try:
            self._writer: Any = pa.ipc.new_stream(str(self._file), columns)
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


def row_lengths(dataset: Any) -> Integers:
    """Tokens of every row of a mixture, int32 [N]."""
    lengths: Integers = dataset.with_format("arrow", columns=["length"])[:].column("length").to_numpy()
    return lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some rows of a mixture.

    Attributes:
        batch: the rows with a trained token, as an Arrow batch with the columns of `schema`.
        names: sources, in order of first appearance.
        source, length, trained, truncated: Integers [n] of all n rows: number in `names`, tokens, trained tokens,
            whether tokens were cut off.
    """

    batch: Any
    names: list[str]
    source: Integers
    length: Integers
    trained: Integers
    truncated: Integers


def tokenise_block(tokeniser: Tokeniser, weight_column: str | None, examples: Sequence[Example]) -> Block:
    """Raises DataError or ConfigError as Tokeniser."""
    rows = tokeniser([example.row for example in examples], [example.where for example in examples])
    trained = [row.trained for row in rows]
    numbers: dict[str, int] = {}
    source = [numbers.setdefault(example.source, len(numbers)) for example in examples]
    kept = [(row, example) for row, example, own in zip(rows, examples, trained, strict=True) if own]
    weights = None if weight_column is None else (weight_column, [example.weight for _, example in kept])
    return Block(
        batch=arrow_batch([row for row, _ in kept], [example.source for _, example in kept], weights),
        names=list(numbers),
        source=np.array(source, dtype=np.int32),
        length=np.array([len(row.input_ids) for row in rows], dtype=np.int32),
        trained=np.array(trained, dtype=np.int32),
        truncated=np.array([row.truncated for row in rows], dtype=np.int32),
    )


def arrow_batch(
    rows: Sequence[TokenRow], sources: Sequence[str], weights: tuple[str, Sequence[float]] | None = None
) -> Any:
    """Rows, their sources, and perhaps (column, how much each counts) as an Arrow batch of `schema`."""
    lengths = [len(row.input_ids) for row in rows]
    offsets = pa.array(np.cumsum([0, *lengths], dtype=np.int32))
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(np.fromiter(chain.from_iterable(lists), np.int32, sum(lengths))))
        for lists in ((row.input_ids for row in rows), (row.labels for row in rows))
    ]
    columns += [pa.array(sources, pa.string()), pa.array(lengths, pa.int32())]
    if weights is None:
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
    return pa.RecordBatch.from_arrays([*columns, pa.array(weights[1], pa.float64())], schema=schema(weights[0]))
