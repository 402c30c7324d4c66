"""What was read, dropped, cut and kept, for each source; and sources that are none: a column of ids, a file a row."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from corebatch.errors import DataError

QUANTILES = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCounts:
    """One source of a mixture.

    Attributes:
        rows_read: rows in the files.
        rows_dropped: of these, without a trained token (blank completion, or cut away): not in the data set.
        rows_blank: of the dropped rows, those that were not cut: nothing in them is to be trained.
        rows_truncated: of the rows read, those longer than `max_length`.
        rows: rows in the data set, after weights.
        tokens: tokens in these rows.
        trained_tokens: those with a loss.
        lengths: tokens a row: "min", "median", "p90", "p99", "max" of these rows.
    """

    rows_read: int
    rows_dropped: int
    rows_blank: int
    rows_truncated: int
    rows: int
    tokens: int
    trained_tokens: int
    lengths: dict[str, int]


def length_quantiles(lengths: Sequence[int]) -> dict[str, int]:
    """Quantiles that are lengths which occur (no interpolation); zeros for no rows."""
    if not len(lengths):
        return dict.fromkeys(QUANTILES, 0)
    values = np.quantile(np.asarray(lengths), list(QUANTILES.values()), method="inverted_cdf")
    return {name: int(value) for name, value in zip(QUANTILES, values, strict=True)}


def table_row(source: str, record: Any, **more: Any) -> dict[str, Any]:
    """A flat dictionary for one line of a table: the record's fields, `length_median` and so on."""
    fields = asdict(record)
    lengths = fields.pop("lengths")
    return {"source": source, **fields, **more, **{f"length_{name}": value for name, value in lengths.items()}}


logger = logging.getLogger(__name__)

MANY = 1000
FEWEST_FOR_AN_ERROR = 100


def check_sources(names: Collection[str], rows: int, source_column: str) -> None:
    """Are these sources at all?

    Args:
        names: of the sources.
        rows: that were read.

    Raises:
        DataError: at least FEWEST_FOR_AN_ERROR sources with fewer than two rows each on average.
    """
    count = len(names)
    if count >= FEWEST_FOR_AN_ERROR and 2 * count > rows:
        some = ", ".join(repr(name if len(name) <= 40 else name[:37] + "...") for name in islice(names, 3))
        raise DataError(
            f"Sources should have several rows each. Found {count:,} sources in {rows:,} rows, which are probably ids "
            f"or addresses: {some}, ... {_advice(source_column)}"
        )


def warn_of_many(names: Collection[str], rows: int, source_column: str) -> None:
    """Says so if there are more than MANY sources; arguments as `check_sources`."""
    if len(names) > MANY:
        logger.warning(
            "%s sources in %s rows: is each of them a data set? %s",
            f"{len(names):,}",
            f"{rows:,}",
            _advice(source_column),
        )


def _advice(source_column: str) -> str:
    return (
        f"Sources are named by the rows' column {source_column!r}, else by the files' names. Another column can be "
        "named by `source_column`, and one name given to all rows of a data set by `source` in its entry."
    )
