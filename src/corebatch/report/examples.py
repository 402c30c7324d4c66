"""What a run did with each example, as a table: how often it was drawn and trained, with which loss and weight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.csv  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from corebatch.errors import ConfigError, DataError
from corebatch.files import replacing
from corebatch.report.fields import json_object, parse

ROWS, SOURCES = "chosen.jsonl", "sources.npy"
_WRITERS = {".parquet": pyarrow.parquet.write_table, ".csv": pyarrow.csv.write_csv}


def check_ending(path: Path) -> None:
    """Raises ConfigError for a file that cannot be written as a table."""
    if path.suffix.lower() not in _WRITERS:
        raise ConfigError(f"--examples should name a file ending in {' or '.join(_WRITERS)}. Found {path.name}.")


def export_examples(run: Path, path: Path) -> int:
    """Writes the table, whole or not at all, and returns its number of rows: one for each example that was drawn.

    Columns: `example`, the row in the train set; `source`; `drawn` and `trained`, how often; `mean_loss` and
    `last_loss`, means over the example's tokens in nats at the steps that trained it, null where they are not known;
    `last_step`, which trained it last, null where none did; `mean_weight` that it was trained with.

    Raises:
        ConfigError: another ending than .parquet and .csv, or the file cannot be written.
        DataError: there is no such run, it has no record of examples, or the record is broken.
    """
    check_ending(path)
    if not run.is_dir():
        raise DataError(f"A run folder was expected. Found no folder at {run}.")
    if not (run / ROWS).is_file() or not (run / SOURCES).is_file():
        missing = ROWS if not (run / ROWS).is_file() else SOURCES
        raise DataError(
            f"{run} has no record of its examples: {missing} is missing. A run leaves it where its steps are "
            "corebatch's and its data have a length: a stream's rows have no identity from pass to pass."
        )
    table = _table(run)
    try:
        with replacing(path) as part:
            _WRITERS[path.suffix.lower()](table, part)
    except OSError as error:
        raise ConfigError(f"{path} could not be written: {type(error).__name__}: {error}.") from error
    return int(table.num_rows)


def _table(run: Path) -> Any:
    try:
        sources = np.load(run / SOURCES, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{run / SOURCES} cannot be read: {error}") from error
    info = run / "corebatch.json"
    told = json_object(parse(info.read_bytes(), str(info)), str(info)) if info.is_file() else {}
    names = list(told.get("sources") or {})
    if sources.ndim != 1 or sources.dtype.kind != "u" or (len(sources) and int(sources.max()) >= len(names)):
        raise DataError(f"{run / SOURCES} should hold the source of each example, of {len(names)} in {info.name}.")
    counts, sums = ("drawn", "trained", "known", "last_step"), ("weight", "loss", "last_loss")
    whole: dict[str, Any] = {key: np.zeros(len(sources), dtype=np.int64) for key in counts}
    whole |= {key: np.zeros(len(sources)) for key in sums}
    for where, step in _steps(run / ROWS):
        try:
            _count(whole, step)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: should be a step of this run. Found: {error}.") from error
    ids = np.flatnonzero(whole["drawn"])
    drawn, trained, known, last, weight, loss, last_loss = (values[ids] for values in whole.values())
    return pa.table(
        {
            "example": ids,
            "source": pa.array([names[s] for s in sources[ids].tolist()], pa.string()),
            "drawn": drawn,
            "trained": trained,
            "mean_loss": pa.array(loss / np.maximum(known, 1), mask=known == 0),
            "last_loss": pa.array(last_loss, mask=known == 0),
            "last_step": pa.array(last, mask=trained == 0),
            "mean_weight": pa.array(weight / np.maximum(trained, 1), mask=trained == 0),
        }
    )


def _count(whole: dict[str, Any], step: dict[str, Any]) -> None:
    """Adds one step to arrays by example id."""
    chosen, passed = (np.asarray(step[key], dtype=np.int64) for key in ("chosen", "passed"))
    for ids in (chosen, passed):
        if len(ids) and int(ids.min()) < 0:
            raise IndexError(f"example {int(ids.min())}")
        np.add.at(whole["drawn"], ids, 1)
    np.add.at(whole["trained"], chosen, 1)
    np.add.at(whole["weight"], chosen, step.get("weights") or 1.0)
    whole["last_step"][chosen] = step["step"]
    losses = np.array(step.get("losses") or [None] * len(chosen), dtype=np.float64)  # null is NaN
    there = ~np.isnan(losses)
    np.add.at(whole["known"], chosen[there], 1)
    np.add.at(whole["loss"], chosen[there], losses[there])
    whole["last_loss"][chosen[there]] = losses[there]


def _steps(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of `chosen.jsonl` one by one, each with its place; one that a killed run did not finish is left out."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                value = json_object(parse(line.rstrip(), where), where)
            except DataError:
                if line.endswith(b"\n"):
                    raise
                return
            yield where, value
