"""`corebatch report RUN`: what a run did, or what a comparison found, on the terminal and as a page."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from corebatch.report import print_summary, read_run, summarise, write_report
from corebatch.text import say


def report(run: Path, console: Console) -> Path:
    """Prints the run's tables and writes `report.html` into its folder; of a comparison, also an unfinished one, its
    tables, text and page."""
    if (run / "plan.json").is_file():
        from corebatch.cli.compare import show

        show(run, console)
        return run / "comparison.html"
    print_summary(summarise(read_run(run)), console)
    page = write_report(run)
    say(console, f"The report is in {page}")
    return page
