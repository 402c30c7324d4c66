"""`corebatch report RUN`: what a run did, or what a comparison found, on the terminal and as a page."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from corebatch.errors import ConfigError
from corebatch.launch.reporting import page_written, report_run
from corebatch.text import say


def report(run: Path, console: Console, output: Path | None = None, examples: Path | None = None) -> Path:
    """Prints the run's tables and writes its page; of a comparison, also an unfinished one, its tables, text and page.
    `output`: where to, instead of the run's folder: the page's file or a folder for it; of a comparison a folder.
    `examples`: where a run's numbers of each example go. Raises DataError: the run cannot be read; ConfigError: the
    page or the table of examples cannot be written; the tables were printed."""
    if examples is not None:
        _export(run, examples, console)
    if (run / "plan.json").is_file():
        from corebatch.cli.compare import show

        with page_written(run):
            return show(run, console, output)
    return report_run(run, console, output)


def _export(run: Path, path: Path, console: Console) -> None:
    from corebatch.report.examples import check_ending, export_examples

    check_ending(path)
    if (run / "plan.json").is_file():
        raise ConfigError(f"--examples is of a run. Found a comparison in {run}: name the folder of one of its runs.")
    say(console, f"{export_examples(run, path):,} examples are in {path}")
