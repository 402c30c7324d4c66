"""The summary of a run as tables in the terminal; reads well at 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from corebatch.rendering import formats
from corebatch.report import rows, words
from corebatch.report.summary import Summary

_MOST_SOURCES = 20


def print_summary(summary: Summary, console: Console) -> None:
    """Print what the run did: sentences, totals, losses, sources, phases, held-out answers, notes."""
    console.print()
    console.print(Text(f"corebatch · {formats.clean(summary.name)}", style="bold"))
    for sentence in words.headline(summary):
        console.print(Text(sentence))
    console.print()
    console.print(_totals(summary))
    if losses := _losses(summary):
        _section(console, losses)
    if summary.sources:
        _section(console, _sources(summary))
    if summary.phases:
        _section(console, _phases(summary))
    if summary.before or summary.after:
        _section(console, _answers(summary))
    for note in summary.notes:
        console.print(Text(f"Note: {formats.clean(note)}", style="yellow"))


def _section(console: Console, table: Table) -> None:
    console.print(Padding(table, (1, 0, 0, 0)))


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column(first, no_wrap=True, overflow="ellipsis", header_style="dim", ratio=None)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True, header_style="dim")
    return table


def _totals(summary: Summary) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.totals(summary):
        table.add_row(Text(name), Text(value))
    return table


def _losses(summary: Summary) -> Table | None:
    known = rows.losses(summary)
    tenth = words.tenth(summary.loss_window)
    table = _table("Loss, nats per token", "", f"first {tenth}", f"last {tenth}")
    for name, loss in known:
        table.add_row(Text(name), formats.number(loss.first), formats.number(loss.last))
    return table if known else None


def _sources(summary: Summary) -> Table:
    table = _table("Sources", "source", "drawn", "share", "chosen", "share", "ratio", "kept")
    shown, other = rows.largest(summary, _MOST_SOURCES)
    for source in [*shown, *([other] if other else [])]:
        table.add_row(
            Text(formats.shorten(source.name, 26)),
            formats.count(source.drawn),
            formats.percent(source.drawn_share),
            formats.count(source.chosen),
            formats.percent(source.chosen_share),
            formats.times(source.ratio),
            formats.count(source.kept_steps) if source.kept_steps else "",
        )
    return table


def _phases(summary: Summary) -> Table:
    table = _table("Phases of a step", "phase", "mean ms", "median ms", "share", "", "peak MB")
    for phase in summary.phases:
        bar = "█" * round(16 * (phase.share or 0))
        table.add_row(
            Text(formats.shorten(words.phase(phase.name), 20)),
            formats.milliseconds(phase.mean_ms),
            formats.milliseconds(phase.median_ms),
            formats.percent(phase.share),
            Text(bar, style="blue", justify="left"),
            formats.compact(phase.peak_memory_mb),
        )
    return table


def _answers(summary: Summary) -> Table:
    table = _table("Exact answers on held-out items", "source", "before", "%", "interval", "after", "%", "interval")
    for name, *found in rows.answers(summary):
        table.add_row(Text(formats.shorten(name, 20)), *(cell for value in found for cell in words.accuracy(value)))
    return table
