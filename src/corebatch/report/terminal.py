"""The summary of a run as tables in the terminal; reads well at 80 columns."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from corebatch.rendering import formats
from corebatch.rendering.sheet import Sheet, rich_table, sheet_by, sheet_of
from corebatch.report import rows
from corebatch.report.headline import headline
from corebatch.report.summary import PhaseSummary, SourceSummary, Summary

_MOST_SOURCES = 20
_PHASES = "Phases of a step"


def print_summary(summary: Summary, console: Console) -> None:
    """Print what the run did: sentences, totals, losses, sources, phases, held-out answers, notes."""
    console.print()
    console.print(Text(f"corebatch · {formats.clean(summary.name)}", style="bold"))
    for about, sentence in headline(summary):
        console.print(Text(f"{about}: {sentence}" if about else sentence))
    console.print()
    console.print(_totals(summary))
    for sheet in (_losses(summary), _sources(summary), _phases(summary), _answers(summary)):
        _print(console, sheet)
    for note in summary.notes:
        console.print(Text(f"Note: {formats.clean(note)}", style="yellow"))


def _print(console: Console, sheet: Sheet | None) -> None:
    if sheet is not None:
        table = rich_table(sheet, left=sheet.header[:1], unbroken=sheet.header, overflow="ellipsis", title_style="bold")
        if sheet.title == _PHASES:  # the bars
            table.columns[4].justify, table.columns[4].style = "left", "blue"
        console.print(Padding(table, (1, 0, 0, 0)))


def _totals(summary: Summary) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.totals(summary):
        table.add_row(Text(name), Text(value))
    return table


def _losses(summary: Summary) -> Sheet | None:
    tenth = rows.tenth(summary.loss_window)
    header = ("", f"first {tenth}", f"last {tenth}")
    found = ((name, formats.number(loss.first), formats.number(loss.last)) for name, loss in rows.losses(summary))
    return sheet_of(header, found, "Loss, nats per token")


def _sources(summary: Summary) -> Sheet | None:
    shown, other = rows.largest(summary, _MOST_SOURCES)
    columns: list[tuple[str, Callable[[SourceSummary], str]]] = [
        ("source", lambda s: formats.shorten(s.name, 26)),
        ("drawn", lambda s: formats.count(s.drawn)),
        ("share", lambda s: formats.percent(s.drawn_share)),
    ]
    if summary.chooses:
        columns += [
            ("chosen", lambda s: formats.count(s.chosen)),
            ("share", lambda s: formats.percent(s.chosen_share)),
            ("ratio", lambda s: formats.times(s.ratio)),
            ("kept", lambda s: formats.count(s.kept_steps) if s.kept_steps else ""),
        ]
    return sheet_by(columns, (*shown, *([other] if other else [])), "Sources")


def _phases(summary: Summary) -> Sheet | None:
    columns: list[tuple[str, Callable[[PhaseSummary], str]]] = [
        ("phase", lambda phase: formats.shorten(rows.phase(phase.name), 20)),
        ("mean ms", lambda phase: formats.milliseconds(phase.mean_ms)),
        ("median ms", lambda phase: formats.milliseconds(phase.median_ms)),
        ("share", lambda phase: formats.percent(phase.share)),
        ("", lambda phase: "█" * round(16 * (phase.share or 0))),
        ("peak MB", lambda phase: formats.compact(phase.peak_memory_mb)),
    ]
    return sheet_by(columns, summary.phases, _PHASES)


def _answers(summary: Summary) -> Sheet | None:
    found = (
        (formats.shorten(name, 20), *rows.accuracy(before), *rows.accuracy(after))
        for name, before, after in rows.answers(summary)
    )
    header = ("source", "before", "%", "interval", "after", "%", "interval")
    return sheet_of(header, found, "Exact answers on held-out items")
