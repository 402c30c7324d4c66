"""A host's rows with the name of their source beside their tokens; hosts drop every other column of a row."""

from __future__ import annotations

from typing import Any

import datasets

from corebatch.errors import DataError

MOST_SOURCES = 100
"""Values of a column by which the rows of one data set are told apart; each is tokenised for itself."""


def with_sources(make: Any, dataset: Any, column: str, source: str | None, default: str) -> tuple[Any, Any]:
    """The host's rows of a data set with a column of sources. Rows of several sources come source by source.

    Args:
        make: gives the host's rows and one thing more of `dataset=...`.
        source: of all rows; None: their own column, if there is one, else `default`.

    Raises:
        DataError: the rows' own column has no text and no integers, or too many values to be sources.
    """
    if source is not None or column not in dataset.column_names:
        groups = {source or default: dataset}
    else:
        numbers: dict[Any, list[int]] = {}
        for number, value in enumerate(dataset.with_format(None)[column]):
            numbers.setdefault(value, []).append(number)
        bad = next((value for value in numbers if not isinstance(value, str | int)), None)
        if len(numbers) > MOST_SOURCES or bad is not None or None in numbers:
            found = f"{len(numbers)} values" if len(numbers) > MOST_SOURCES else f"{bad!r}"
            raise DataError(
                f"The column {column!r} of {default} should name the source of each row, {MOST_SOURCES} at most. Found "
                f"{found}: give the data set a `source`, or set coreset.source_column to another column or none."
            )
        groups = {str(value): dataset.select(own) for value, own in numbers.items()}
    made, more = [], None
    for name, rows in groups.items():
        tokens, more = make(dataset=rows)
        if column in tokens.column_names:
            tokens = tokens.remove_columns(column)
        made.append(tokens.add_column(column, [name] * len(tokens)))
    return datasets.concatenate_datasets(made), more
