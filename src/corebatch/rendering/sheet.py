"""A table as text, the same for terminal, Markdown and page; and rows of dictionaries as one."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rich.console import OverflowMethod
from rich.table import Table

from corebatch.text import markdown, terminal

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A table: its first column is text, its rows are as long as its header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    caption: str = ""


def sheet_of(header: tuple[str, ...], found: Iterable[tuple[str, ...]], title: str = "") -> Sheet | None:
    """A sheet, or None without rows."""
    found = tuple(found)
    return Sheet(title=title, header=header, rows=found) if found else None


def sheet_by(columns: Sequence[tuple[str, Callable[[T], str]]], items: Iterable[T], title: str = "") -> Sheet | None:
    """A sheet with a row for each item, of columns that are a name and what makes the cell; None without items."""
    header = tuple(name for name, _ in columns)
    return sheet_of(header, (tuple(cell(item) for _, cell in columns) for item in items), title)


def without_repeats(found: Iterable[Sheet]) -> list[Sheet]:
    """The sheets, where neighbours share a caption only the last of them with it."""
    listed = list(found)
    after = [sheet.caption for sheet in listed[1:]] + [""] * len(listed[:1])
    return [
        replace(sheet, caption="") if sheet.caption == following else sheet
        for sheet, following in zip(listed, after, strict=True)
    ]


def rich_table(
    sheet: Sheet,
    left: Container[str],
    *,
    unbroken: Container[str] = (),
    overflow: OverflowMethod = "fold",
    title_style: str = "",
    header_style: str = "dim",
) -> Table:
    """For the terminal. Columns named in `left` are set to the left, others, which are numbers, to the right; those in
    `unbroken` stay on one line."""
    table = Table(title=terminal(sheet.title, title_style), title_justify="left", box=None, pad_edge=False)
    table.caption, table.caption_justify = terminal(sheet.caption) if sheet.caption else None, "left"
    for name in sheet.header:
        table.add_column(
            terminal(name, lines=True),
            justify="left" if name in left else "right",
            no_wrap=name in unbroken,
            overflow=overflow,
            header_style=header_style,
        )
    for row in sheet.rows:
        table.add_row(*map(terminal, row))
    return table


def markdown_table(sheet: Sheet, left: Container[str]) -> str:
    """As a part of a page in Markdown: title, table, caption; columns not named in `left` are numbers."""
    head, *body = ([*map(markdown, row)] for row in (sheet.header, *sheet.rows))
    rule = ["---" if name in left else "---:" for name in sheet.header]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))
    title = f"### {markdown(sheet.title)}" if sheet.title else ""
    return "\n\n".join(part for part in (title, table, markdown(sheet.caption)) if part)


def flat(values: Mapping[str, Any] | Iterable[tuple[str, Any]], prefix: str = "") -> list[tuple[str, str]]:
    """Names and values as text, nested objects flattened with dots."""
    found: list[tuple[str, str]] = []
    for key, value in values.items() if isinstance(values, Mapping) else values:
        if isinstance(value, Mapping) and value:
            found += flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", _text(value)))
    return found


def _text(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) + "}"
    return str(value)


MOST_SOURCES = 20  # lines of a table of sources


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table with a column for each key of the rows; numbers to the right, with thousands separated."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    words = [c for c in columns if not all(isinstance(row.get(c), int | float | None) for row in rows)]
    sheet = Sheet(
        title=title,
        header=tuple(map(_spaced, columns)),
        rows=tuple(tuple(_cell_text(row.get(column)) for column in columns) for row in rows),
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
        made.append({**flat, "length: median, p90, max": ", ".join(_cell_text(value) for value in lengths)})
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


def _cell_text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_cell_text(item)}" for key, item in value.items())
    return str(value)
