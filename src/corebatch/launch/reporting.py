"""A run's report, on the terminal and as a page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from corebatch.errors import ConfigError
from corebatch.report import print_summary, read_run, summarise, write_report
from corebatch.text import say


def report_run(run: Path, console: Console, output: Path | None = None) -> Path:
    """Prints the run's tables and writes its page; returns the page's path. `output`: the page's file or a folder for
    it, instead of the run's folder. Raises DataError: the run cannot be read; ConfigError: the page cannot be written;
    the tables were printed."""
    summary = summarise(read_run(run))
    print_summary(summary, console)
    with page_written(run):
        page = write_report(run, output)
    say(console, f"The report is in {page}")
    return page


@contextmanager
def page_written(run: Path) -> Iterator[None]:
    """What goes wrong with the disk within is a ConfigError that names the folder of a run or a comparison."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"The page of {run} could not be written: {type(error).__name__}: {error}. "
            f"`corebatch report {run} --output PATH` writes it to another place."
        ) from error
