"""Rows of dictionaries as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from corebatch.rendering.sheet import Sheet, rich_table

MOST_SOURCES = 20  # lines of a table of sources


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table with a column for each key of the rows; numbers to the right, with thousands separated."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    words = [c for c in columns if not all(isinstance(row.get(c), int | float | None) for row in rows)]
    sheet = Sheet(
        title=title,
        header=tuple(map(_spaced, columns)),
        rows=tuple(tuple(_text(row.get(column)) for column in columns) for row in rows),
    )
    left = [_spaced(column) for column in words]
    return rich_table(sheet, left, unbroken=("source",), header_style="bold")


def _spaced(column: str) -> str:
    return column.replace("_", " ")


def source_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The sources of a mixture or a preview in few columns: counts that are zero everywhere are left out, lengths come
    as one, and behind the largest 20 sources all others are one line."""
    names = {"rows_read": "read", "rows_dropped": "dropped", "sampled_dropped": "dropped", "rows_truncated": "cut"}
    names |= {"sampled_truncated": "cut", "trained_tokens": "trained"}
    made = []
    for row in _largest(rows):
        flat = {
            names.get(key, key): value
            for key, value in row.items()
            if not key.startswith("length_") and not key.endswith("_blank")
        }
        lengths = [row.get(f"length_{part}") for part in ("median", "p90", "max")]
        made.append({**flat, "length: median, p90, max": ", ".join(_text(value) for value in lengths)})
    empty = {key for key in ("dropped", "cut") if not any(row.get(key) for row in made)}
    same = {key for key in ("read",) if all(row.get(key) == row.get("rows") for row in made)}
    return [{key: value for key, value in row.items() if key not in empty | same} for row in made]


def _largest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if len(rows) <= MOST_SOURCES:
        return list(rows)
    by_size = sorted(rows, key=lambda row: -row["rows"])
    others = by_size[MOST_SOURCES:]
    counted = (key for key, value in others[0].items() if isinstance(value, int | float) and "length" not in key)
    together: dict[str, Any] = {key: sum(row[key] for row in others) for key in counted}
    return [*by_size[:MOST_SOURCES], {"source": f"{len(others):,} more", **together}]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_text(item)}" for key, item in value.items())
    return str(value)
