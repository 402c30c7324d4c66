"""A bar, and a line for each job of a comparison that ended, with the time to the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from corebatch.rendering.formats import duration
from corebatch.text import terminal

Tick = Callable[..., None]
"""`tick(text, work=1.0)`: a job has ended, with a line of text or None; `work` is how much of the whole it was."""


@contextmanager
def progress(console: Console, title: str, total: int, work: float | None = None, after: float = 0.0) -> Iterator[Tick]:
    """Gives what is called when one of `total` jobs has ended.

    Args:
        work: of all these jobs, in a unit in which they can be added, as seconds of one thread that were planned; None
            says nothing of the end.
        after: of what comes then, in the same unit; the time to the end has it.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console.print(terminal(title, "bold"), terminal(f": {total} runs"), sep="")
    began, done = time.monotonic(), 0.0
    left = TextColumn("{task.fields[left]}")
    with Progress(*columns, left, console=console, transient=True, disable=not console.is_terminal) as bar:
        job = bar.add_task(title, total=total, left="")

        def tick(text: str | None, own: float = 1.0) -> None:
            nonlocal done
            done += own
            told = "" if work is None else to_the_end(time.monotonic() - began, done, work + after)
            bar.update(job, advance=1, left=told)
            if text is not None:
                console.print(terminal(f"{text}; {told}" if told and not console.is_terminal else text))

        yield tick


def to_the_end(elapsed: float, done: float, whole: float) -> str:
    """About 12 min 30 s to the end: at the pace so far; nothing where nothing is left, or nothing was done."""
    left = whole - done
    return f"about {duration(elapsed * left / done)} to the end" if done > 0 and left > 1e-6 * whole else ""
