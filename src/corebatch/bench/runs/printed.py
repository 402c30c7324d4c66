"""The tables of a comparison in the terminal and in `comparison.md`."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from corebatch.bench.runs import format as words
from corebatch.bench.runs import tables as sheets
from corebatch.bench.runs.comparison import Comparison
from corebatch.rendering.sheet import Sheet, markdown_table, rich_table, without_repeats
from corebatch.text import markdown as markdown_text
from corebatch.text import terminal


def terminal_tables(comparison: Comparison) -> list[Table]:
    """Tables for rich, in the order to be read: outcome in sentences, cost, losses, tests, time to loss, marks. Raises
    MissingExtraError: scipy is not installed."""
    parts = [
        sheets.spent(comparison),
        sheets.losses(comparison),
        *sheets.tests(comparison),
        *sheets.reaches(comparison)[:1],
        sheets.marks(comparison),
    ]
    found = without_repeats(part for part in parts if part is not None)
    return [_sentences(comparison), *(rich_table(sheet, _TEXTS) for sheet in found)]


def _sentences(comparison: Comparison) -> Table:
    table = Table.grid()
    table.add_column(overflow="fold")
    for line in words.headline(comparison):
        table.add_row(terminal(line))
    for note in comparison.notes:
        table.add_row(terminal(f"Note: {note}", "yellow"))
    return table


_TEXTS = ("arm", "baseline", "source", "method", "budget", "role", "effect", "reason", "verdict")


def markdown(comparison: Comparison) -> str:
    """The text of `comparison.md`. Raises MissingExtraError: scipy is not installed."""
    plan = comparison.plan
    tests, reaches = sheets.tests(comparison), sheets.reaches(comparison)
    parts = [
        "# Comparison of methods",
        _bullets(words.headline(comparison)),
        "## The question",
        _bullets(f"{name}: {value}" for name, value in sheets.budgets(comparison)),
        _pairs(sheets.flat(plan.settings)),
        "## Outcome",
        _sheet(sheets.outcome(comparison)),
        "## Tests",
        *(map(_sheet, without_repeats(tests)) if tests else [NO_TESTS]),
        "## Time to the loss of each baseline",
        *(map(_sheet, without_repeats(reaches)) if reaches else [NO_TESTS]),
        _sheet(sheets.reach_of_all(comparison)),
        "## Sources",
        _sheet(sheets.sources(comparison)) or "No run has a loss by source.",
        "## Marked and missing runs",
        _sheet(sheets.marks(comparison)) or "None.",
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


def _sheet(sheet: Sheet | None) -> str:
    return "" if sheet is None else markdown_table(sheet, _TEXTS)


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- {markdown_text(name)}: {markdown_text(value)}" for name, value in pairs)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {markdown_text(line)}" for line in lines)
