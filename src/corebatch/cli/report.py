"""`corebatch report RUN`: what a run did, or what a comparison found, on the terminal and as a page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from corebatch.errors import ConfigError
from corebatch.report import print_summary, read_run, summarise, write_report
from corebatch.text import say


def report(run: Path, console: Console, output: Path | None = None) -> Path:
    """Prints the run's tables and writes its page; of a comparison, also an unfinished one, its tables, text and page.

    Args:
        output: where to, instead of the run's folder: the page's file or a folder for it; of a comparison a folder.

    Raises:
        DataError: the run cannot be read.
        ConfigError: the page cannot be written; the tables were printed.
    """
    if (run / "plan.json").is_file():
        from corebatch.cli.compare import show

        with _written(run):
            return show(run, console, output)
    summary = summarise(read_run(run))
    print_summary(summary, console)
    with _written(run):
        page = write_report(run, output)
    say(console, f"The report is in {page}")
    return page


@contextmanager
def _written(run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"The page of {run} could not be written: {type(error).__name__}: {error}. "
            f"`corebatch report {run} --output PATH` writes it to another place."
        ) from error
