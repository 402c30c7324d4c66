"""What was read, dropped, cut and kept, for each source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

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
    return {
        "source": source,
        **fields,
        **more,
        **{f"length_{name}": value for name, value in lengths.items()},
    }
