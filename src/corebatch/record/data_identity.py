"""By what a data set is known again: number of rows, sources, and the content of its rows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import xxhash

from corebatch.sampling.tagged import row_hash

if TYPE_CHECKING:
    from corebatch.sampling.tags import Sources

SAMPLED_ROWS = 64
"""Rows whose content goes into the short hash, which earlier versions have as well."""
MOST_BYTES = 4 * 2**30
"""Of a table that is read whole (2 s); of larger ones BLOCKS pieces of BLOCK rows at equal distances."""
BLOCKS, BLOCK = 1024, 64


def describe_data(dataset: Any, sources: Sources) -> dict[str, Any]:
    """A data set's number of examples, a hash of its sources' counts and of a few rows, and one of the content.

    Rows are read of a `datasets.Dataset` and of a list alone: those of other data sets may be made at random.
    """
    if not hasattr(dataset, "__len__"):
        return {"examples": None, "hash": None}
    count = len(dataset)
    digest = hashlib.sha256(str(count).encode())
    for source, examples in sorted(sources.counts.items()):
        digest.update(f"{sources.names[source]!r} {examples}\n".encode())
    if isinstance(dataset, datasets.Dataset):
        places = sorted({count * i // SAMPLED_ROWS for i in range(SAMPLED_ROWS)} | {count - 1})
        table = dataset.with_format("arrow")[places]
        for name in sorted(table.column_names):
            digest.update(repr((name, table.column(name).to_pylist())).encode())
    return {"examples": count, "hash": digest.hexdigest()[:16]} | content(dataset)


def describe_evaluation(dataset: Any) -> dict[str, Any]:
    """The number of rows of a held-out set and the hash of their content; of several sets by name."""
    if isinstance(dataset, Mapping) and not isinstance(dataset, datasets.Dataset):
        return {str(name): describe_evaluation(each) for name, each in dataset.items()}
    return {"examples": len(dataset) if hasattr(dataset, "__len__") else None} | content(dataset)


def content(dataset: Any) -> dict[str, str]:
    """A hash of all rows in their order, under `content`; for rows that an index picks out of a table (`select`,
    `shuffle`), which are slow to read one by one, of table and index, under `stored`. Of tables of more than
    MOST_BYTES a sample of rows is read. Nothing where rows may be made when they are read.
    """
    if isinstance(dataset, list | tuple):
        return {"content": _rows_hash(dataset)}
    if not isinstance(dataset, datasets.Dataset):
        return {}
    made, table, picked = ContentHash(), dataset.data, getattr(dataset, "_indices", None)
    if picked is not None:
        made.add_table(picked)
    if table.nbytes > MOST_BYTES and len(table) > BLOCKS * BLOCK:
        for i in range(BLOCKS):
            made.add_table(table.slice((len(table) - BLOCK) * i // (BLOCKS - 1), BLOCK))
    else:
        made.add_table(table)
    return {"content" if picked is None else "stored": made.hexdigest()}


def _rows_hash(rows: Sequence[Any]) -> str:
    made, every = xxhash.xxh3_128(), max(1, len(rows) // (BLOCKS * BLOCK))
    for row in rows[::every]:
        made.update(row_hash(row).to_bytes(8, "little"))
    return str(made.hexdigest()[:16])


class ContentHash:
    """Hashes columns as they come in pieces, so that it does not matter where the pieces were cut."""

    def __init__(self) -> None:
        self._leaves: dict[str, Any] = {}
        self._counts: Counter[str] = Counter()

    def add_table(self, table: Any) -> None:
        """The next rows of a table, column by column."""
        for name in sorted(table.column_names):
            for piece in table.column(name).chunks:
                self.add(name, piece)

    def add(self, name: str, array: Any) -> None:
        """The next values of a column, or of what lies within it."""
        kind = array.type
        if array.null_count:
            places = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)) + self._counts[name]
            self._update(f"{name} null", places)
        self._counts[name] += len(array)
        if isinstance(array, pa.ExtensionArray):
            self.add(f"{name}()", array.storage)
        elif pa.types.is_struct(kind):
            for field, values in zip(kind, array.flatten(), strict=True):
                self.add(f"{name}.{field.name}", values)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            self._update(f"{name} length", pc.list_value_length(array.drop_null()).to_numpy())
            self.add(f"{name}[]", array.flatten())
        elif pa.types.is_primitive(kind):
            self._update(f"{name} {kind}", array.drop_null().to_numpy(zero_copy_only=False))
        elif pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind):
            whole = array.drop_null().cast(pa.large_binary())
            ends = np.frombuffer(whole.buffers()[1], np.int64)[whole.offset : whole.offset + len(whole) + 1]
            self._update(f"{name} length", np.diff(ends))
            if len(ends) and ends[-1] > ends[0]:
                self._leaf(f"{name} text").update(memoryview(whole.buffers()[2])[ends[0] : ends[-1]])
        else:  # what is rare
            for value in array.to_pylist():
                self._leaf(name).update(repr(value).encode("utf-8", "surrogatepass"))

    def hexdigest(self) -> str:
        """16 hexadecimal digits of all columns, their numbers of values and where values are missing."""
        lines = [f"{name}: {count}" for name, count in sorted(self._counts.items())]
        lines += [f"{name}: {leaf.hexdigest()}" for name, leaf in sorted(self._leaves.items())]
        return str(xxhash.xxh3_128("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16])

    def _leaf(self, name: str) -> Any:
        return self._leaves.setdefault(name, xxhash.xxh3_128())

    def _update(self, name: str, values: Any) -> None:
        if len(values):
            self._leaf(name).update(np.ascontiguousarray(values).tobytes())
