"""A table as text, the same for terminal, Markdown and page."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from corebatch.text import markdown, terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A table: its first column is text, its rows are as long as its header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    caption: str = ""


def without_repeats(found: Iterable[Sheet]) -> list[Sheet]:
    """The sheets, where neighbours share a caption only the last of them with it."""
    listed = list(found)
    after = [sheet.caption for sheet in listed[1:]] + [""] * len(listed[:1])
    return [
        replace(sheet, caption="") if sheet.caption == following else sheet
        for sheet, following in zip(listed, after, strict=True)
    ]


def rich_table(sheet: Sheet, texts: Container[str]) -> Table:
    """For the terminal; columns named in `texts` to the left, others, which are numbers, to the right."""
    table = Table(title=terminal(sheet.title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.caption, table.caption_justify = terminal(sheet.caption) if sheet.caption else None, "left"
    for name in sheet.header:
        table.add_column(
            terminal(name), justify="left" if name in texts else "right", overflow="fold", header_style="dim"
        )
    for row in sheet.rows:
        table.add_row(*(terminal(cell) for cell in row))
    return table


def markdown_table(sheet: Sheet, texts: Container[str]) -> str:
    """As a part of a page in Markdown: title, table, caption; columns named in `texts` are no numbers."""
    lines = [sheet.header, tuple("---" if name in texts else "---:" for name in sheet.header), *sheet.rows]
    table = "\n".join("| " + " | ".join(markdown(cell) for cell in row) + " |" for row in lines)
    return "\n\n".join(part for part in (f"### {markdown(sheet.title)}", table, markdown(sheet.caption)) if part)


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
