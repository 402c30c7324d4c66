"""`corebatch report RUN`: what a run did, on the terminal and as a page."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from corebatch.report import print_summary, read_run, summarise, write_report


def report(run: Path, console: Console) -> Path:
    """Prints the run's tables and writes `report.html` into its folder."""
    print_summary(summarise(read_run(run)), console)
    page = write_report(run)
    console.print(f"The report is in {page}", highlight=False, soft_wrap=True)
    return page
