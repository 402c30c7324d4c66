"""Tokenised rows on disk: written as they come, then mapped into memory as a `datasets.Dataset`.

A mixture of a million rows does not fit into memory as Python lists, and the cache of
`Dataset.from_generator` is keyed by its arguments, so that it would not notice a changed file. Hence a file
of our own, in a temporary folder that goes when the process ends; nothing is written beside the user's data.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import datasets
import pyarrow as pa  # type: ignore[import-untyped]

from corebatch.mixture.tokenise import TokenRow

SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("source", pa.string()),
        ("length", pa.int32()),
    ]
)
COLUMNS = tuple(SCHEMA.names)
ROWS_AT_ONCE = 1000


class RowStore:
    """Takes rows one by one and gives them back as a data set with the columns of SCHEMA.

    Use it as a context manager: left by an error, it removes what it wrote.

    Args:
        work_dir: where the temporary folder is made; None: the system's.
    """

    def __init__(self, work_dir: str | Path | None = None) -> None:
        if work_dir is not None:
            Path(work_dir).mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.mkdtemp(prefix="corebatch-mixture-", dir=work_dir)
        self._file = Path(self._folder) / "rows.arrow"
        self._writer: Any = pa.ipc.new_stream(str(self._file), SCHEMA)
        self._waiting: list[dict[str, Any]] = []

    def __enter__(self) -> RowStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._writer.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def append(self, row: TokenRow, source: str) -> None:
        self._waiting.append(
            {"input_ids": row.input_ids, "labels": row.labels, "source": source, "length": len(row.input_ids)}
        )
        if len(self._waiting) == ROWS_AT_ONCE:
            self._flush()

    def dataset(self) -> Any:
        """The rows as a `datasets.Dataset`; nothing can be appended afterwards."""
        self._flush()
        self._writer.close()
        atexit.register(_remove, self._folder, os.getpid())
        return datasets.Dataset.from_file(str(self._file))

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._waiting, schema=SCHEMA))
            self._waiting = []


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker that ends must leave its parent's rows alone
        shutil.rmtree(folder, ignore_errors=True)
