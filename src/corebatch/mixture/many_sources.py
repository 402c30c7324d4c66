"""Sources that are none: a column of ids or addresses, or a file for each row."""

from __future__ import annotations

import logging
from collections.abc import Collection
from itertools import islice

from corebatch.errors import DataError

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
