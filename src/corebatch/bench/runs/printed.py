"""The tables of a comparison in the terminal and in `comparison.md`."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from corebatch.bench.runs import format as words
from corebatch.bench.runs import tables as sheets
from corebatch.bench.runs.comparison import Comparison
from corebatch.bench.runs.tables import Sheet
from corebatch.text import markdown as markdown_text
from corebatch.text import terminal


def terminal_tables(comparison: Comparison) -> list[Table]:
    """Tables for rich, in the order to be read: outcome in sentences, cost, losses, tests, time to loss, marks.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    parts = [
        sheets.spent(comparison),
        sheets.losses(comparison),
        *sheets.tests(comparison),
        *sheets.reaches(comparison)[:1],
        sheets.marks(comparison),
    ]
    found = sheets.without_repeats(part for part in parts if part is not None)
    return [_sentences(comparison), *map(_terminal, found)]


def _sentences(comparison: Comparison) -> Table:
    table = Table.grid()
    table.add_column(overflow="fold")
    for line in words.headline(comparison):
        table.add_row(terminal(line))
    for note in comparison.notes:
        table.add_row(terminal(f"Note: {note}", "yellow"))
    return table


_TEXTS = ("arm", "baseline", "source", "method", "budget", "role", "effect", "reason", "verdict")


def _terminal(sheet: Sheet) -> Table:
    table = Table(title=terminal(sheet.title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.caption, table.caption_justify = terminal(sheet.caption) if sheet.caption else None, "left"
    for name in sheet.header:
        table.add_column(
            terminal(name), justify="left" if name in _TEXTS else "right", overflow="fold", header_style="dim"
        )
    for row in sheet.rows:
        table.add_row(*(terminal(cell) for cell in row))
    return table


def markdown(comparison: Comparison) -> str:
    """The text of `comparison.md`.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    plan = comparison.plan
    tests, reaches = sheets.tests(comparison), sheets.reaches(comparison)
    marks = sheets.marks(comparison)
    parts = [
        "# Comparison of methods",
        _bullets(words.headline(comparison)),
        "## The question",
        _bullets(f"{name}: {value}" for name, value in sheets.budgets(comparison)),
        _pairs(sheets.flat(plan.settings)),
        "## Outcome",
        _sheet(sheets.outcome(comparison)),
        "## Tests",
        *(map(_sheet, sheets.without_repeats(tests)) if tests else [NO_TESTS]),
        "## Time to the loss of each baseline",
        *(map(_sheet, sheets.without_repeats(reaches)) if reaches else [NO_TESTS]),
        _optional(sheets.reach_of_all(comparison)),
        "## Sources",
        _optional(sheets.sources(comparison)) or "No run has a loss by source.",
        "## Marked and missing runs",
        "None." if marks is None else _sheet(marks),
        _bullets(comparison.notes),
        "## Tuning and timing",
        _pairs(sheets.flat(plan.tuning)),
        _sheet(sheets.timing(comparison)),
        _pairs(sheets.flat(plan.timing)),
        "## Provenance",
        _pairs(sheets.provenance(comparison)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


NO_TESTS = "The plan has no reference arm with a baseline beside it."


def _sheet(sheet: Sheet) -> str:
    lines = [sheet.header, tuple("---" if name in _TEXTS else "---:" for name in sheet.header), *sheet.rows]
    table = "\n".join("| " + " | ".join(markdown_text(cell) for cell in row) + " |" for row in lines)
    return "\n\n".join(
        part for part in (f"### {markdown_text(sheet.title)}", table, markdown_text(sheet.caption)) if part
    )


def _optional(sheet: Sheet | None) -> str:
    return "" if sheet is None else _sheet(sheet)


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- {markdown_text(name)}: {markdown_text(value)}" for name, value in pairs)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {markdown_text(line)}" for line in lines)
