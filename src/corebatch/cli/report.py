"""`corebatch report RUN`: what a run did, or what a comparison found, on the terminal and as a page."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from corebatch.launch.reporting import page_written, report_run


def report(run: Path, console: Console, output: Path | None = None) -> Path:
    """Prints the run's tables and writes its page; of a comparison, also an unfinished one, its tables, text and page.
    `output`: where to, instead of the run's folder: the page's file or a folder for it; of a comparison a folder.
    Raises DataError: the run cannot be read; ConfigError: the page cannot be written; the tables were printed."""
    if (run / "plan.json").is_file():
        from corebatch.cli.compare import show

        with page_written(run):
            return show(run, console, output)
    return report_run(run, console, output)
