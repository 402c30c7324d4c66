"""Some rows of a mixture's files, each with how much it counts, in files that a mixture can be read from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from numpy.typing import NDArray

from corebatch.errors import DataError
from corebatch.files import replacing
from corebatch.mixture.columns import Columns
from corebatch.mixture.examples import Example, batches, read_examples
from corebatch.mixture.load import Mixture
from corebatch.mixture.reading import read_parts
from corebatch.mixture.table_files import ParquetReader

WEIGHT = "weight"
"""The column with how much a row counts."""
_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRows:
    """Rows of a mixture.

    Attributes:
        mixture: read without weights of data sets.
        rows: Integers [M], strictly ascending, into its rows.
        weights: Floats [M].
        source_column: of the mixture, which the files get as well where rows lack it.
        weight_column: of the mixture, or None; the weights have it as a factor already, so it is left out.
    """

    mixture: Mixture
    rows: NDArray[np.int64]
    weights: NDArray[np.float64]
    source_column: str
    weight_column: str | None = None

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name of the form, cells) of each row, in order; columns go by the names that training knows."""
        assert self.mixture.places is not None
        examples = whole_rows(self.mixture, self.source_column, self.weight_column)
        done = 0
        for place, weight in zip(self.mixture.places[self.rows].tolist(), self.weights.tolist(), strict=True):
            example = next(islice(examples, place - done, None))
            done = place + 1
            cells = {key: value for key, value in (example.values or {}).items() if key != self.weight_column}
            yield example.form, {**cells, self.source_column: example.source, WEIGHT: weight}


def whole_rows(mixture: Mixture, source_column: str, weight_column: str | None) -> Iterator[Example]:
    """All examples of a mixture as they are read, with all of their cells; `Mixture.places` are numbers of these."""
    return chain.from_iterable(
        read_examples(spec, source_column, weight_column=weight_column, whole=True) for spec in mixture.specs
    )


def write_kept(kept: KeptRows, folder: Path) -> list[Path]:
    """Writes the rows into files `part-0.jsonl`, one for each form that rows have, since no one file may have several;
    Parquet where all of them come from Parquet files whose columns go together. `named` gives them their names.

    Every file is there whole or not at all. Raises DataError: a cell that JSON cannot hold.
    """
    schema = _schema(kept)
    paths: list[Path] = []
    with ExitStack() as open_files:
        writers: dict[str, Any] = {}
        for batch in batches(kept, _AT_ONCE):
            for form in dict.fromkeys(name for name, _ in batch):
                rows = [cells for name, cells in batch if name == form]
                if form not in writers:
                    path = folder / f"part-{len(writers)}{'.jsonl' if schema is None else '.parquet'}"
                    paths.append(path)
                    part = open_files.enter_context(replacing(path))
                    new = part.open("w", encoding="utf-8") if schema is None else pq.ParquetWriter(part, schema)
                    writers[form] = open_files.enter_context(new)
                if schema is None:
                    writers[form].writelines(f"{_line(row)}\n" for row in rows)
                else:
                    writers[form].write_table(pa.Table.from_pylist(rows, schema=schema))
    return paths


def named(parts: list[Path]) -> list[Path]:
    """The files that `write_kept` wrote as `data.jsonl`, or `data-1.jsonl` and so on; earlier ones are replaced."""
    names = ["data"] if len(parts) == 1 else [f"data-{number}" for number in range(1, len(parts) + 1)]
    return [path.replace(path.with_name(f"{name}{path.suffix}")) for path, name in zip(parts, names, strict=True)]


def _line(row: Mapping[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"A kept row should be plain JSON. Found {', '.join(map(repr, row))}, of which one is not: {error}. Leave "
            "the column out on purpose (`ignore_columns`), or write the data as Parquet."
        ) from error


def _schema(kept: KeptRows) -> Any:
    """The columns of all files together, if they are Parquet and go together; else None."""
    found = []
    for spec in kept.mixture.specs:
        columns = Columns.of(spec, kept.source_column, kept.weight_column)
        for part in read_parts(spec):
            if not isinstance(part.reader, ParquetReader):
                return None
            own = pq.read_schema(part.reader.path)
            found.append(
                pa.schema([own.field(theirs).with_name(ours) for ours, theirs in columns.names(own.names).items()])
            )
    try:
        whole = pa.unify_schemas([each.remove_metadata() for each in found])
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None
    for name in {WEIGHT, kept.weight_column, kept.source_column} & {*whole.names}:
        whole = whole.remove(whole.get_field_index(name))
    return whole.append(pa.field(kept.source_column, pa.string())).append(pa.field(WEIGHT, pa.float64()))
