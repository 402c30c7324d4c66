"""A bar, and a line for each job of a comparison that ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from corebatch.text import terminal


@contextmanager
def progress(console: Console, title: str, total: int) -> Iterator[Callable[[str | None], None]]:
    """Gives what is called with a line of text, or None, when one of `total` jobs has ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console.print(terminal(title, "bold"), terminal(f": {total} runs"), sep="")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        job = bar.add_task(title, total=total)

        def tick(text: str | None) -> None:
            bar.advance(job)
            if text is not None:
                console.print(terminal(text))

        yield tick
