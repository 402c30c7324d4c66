"""The summary of a run as tables in the terminal; reads well at 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from corebatch.rendering import formats
from corebatch.rendering.sheet import Sheet, rich_table, sheet_of
from corebatch.report import rows, words
from corebatch.report.summary import Summary

_MOST_SOURCES = 20
_PHASES = "Phases of a step"


def print_summary(summary: Summary, console: Console) -> None:
    """Print what the run did: sentences, totals, losses, sources, phases, held-out answers, notes."""
    console.print()
    console.print(Text(f"corebatch · {formats.clean(summary.name)}", style="bold"))
    for sentence in words.headline(summary):
        console.print(Text(sentence))
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
    tenth = words.tenth(summary.loss_window)
    header = ("", f"first {tenth}", f"last {tenth}")
    found = ((name, formats.number(loss.first), formats.number(loss.last)) for name, loss in rows.losses(summary))
    return sheet_of(header, found, "Loss, nats per token")


def _sources(summary: Summary) -> Sheet | None:
    shown, other = rows.largest(summary, _MOST_SOURCES)
    found = (
        (
            formats.shorten(source.name, 26),
            formats.count(source.drawn),
            formats.percent(source.drawn_share),
            formats.count(source.chosen),
            formats.percent(source.chosen_share),
            formats.times(source.ratio),
            formats.count(source.kept_steps) if source.kept_steps else "",
        )
        for source in (*shown, *([other] if other else []))
    )
    return sheet_of(("source", "drawn", "share", "chosen", "share", "ratio", "kept"), found, "Sources")


def _phases(summary: Summary) -> Sheet | None:
    found = (
        (
            formats.shorten(words.phase(phase.name), 20),
            formats.milliseconds(phase.mean_ms),
            formats.milliseconds(phase.median_ms),
            formats.percent(phase.share),
            "█" * round(16 * (phase.share or 0)),
            formats.compact(phase.peak_memory_mb),
        )
        for phase in summary.phases
    )
    return sheet_of(("phase", "mean ms", "median ms", "share", "", "peak MB"), found, _PHASES)


def _answers(summary: Summary) -> Sheet | None:
    found = (
        (formats.shorten(name, 20), *words.accuracy(before), *words.accuracy(after))
        for name, before, after in rows.answers(summary)
    )
    header = ("source", "before", "%", "interval", "after", "%", "interval")
    return sheet_of(header, found, "Exact answers on held-out items")
