"""`corebatch report RUN`: what a run did, or what a comparison found, on the terminal and as a page."""

from __future__ import annotations

import webbrowser
from pathlib import Path

from rich.console import Console

from corebatch.errors import ConfigError
from corebatch.launch.reporting import page_written, report_run
from corebatch.report import read_run, summarise
from corebatch.text import say


def report(
    run: Path,
    console: Console,
    output: Path | None = None,
    examples: Path | None = None,
    comparison: Path | None = None,
    show_it: bool = False,
) -> Path:
    """Prints the run's tables and writes its page; of a comparison, also an unfinished one, its tables, text and page.

    Args:
        output: where to, instead of the run's folder: the page's file or a folder for it; of a comparison a folder.
        examples: where a run's numbers of each example go.
        comparison: whose outcome against plain training a run's report tells.
        show_it: opens the page in the user's browser.

    Raises:
        DataError: the run or the comparison cannot be read.
        ConfigError: the page or the table of examples cannot be written, the comparison is not of the run's selection,
            or no browser can be started; the tables were printed but for what is wrong with the comparison.
    """
    if examples is not None:
        _export(run, examples, console)
    if (run / "plan.json").is_file():
        if comparison is not None:
            raise ConfigError(f"--comparison is of a run's report. Found a comparison in {run}.")
        from corebatch.cli.compare import show

        with page_written(run):
            page = show(run, console, output)
    else:
        page = report_run(run, console, output, () if comparison is None else _against(run, comparison))
    if show_it:
        _open(page)
    return page


def _against(run: Path, comparison: Path) -> tuple[str, ...]:
    from corebatch.bench.runs import read_comparison
    from corebatch.bench.runs.against import against_plain

    return against_plain(read_comparison(comparison), summarise(read_run(run)))


def _open(page: Path) -> None:
    if not webbrowser.open(page.resolve().as_uri()):
        raise ConfigError(f"--open: no browser could be started here. The page is in {page}.")


def _export(run: Path, path: Path, console: Console) -> None:
    from corebatch.report.examples import check_ending, export_examples

    check_ending(path)
    if (run / "plan.json").is_file():
        raise ConfigError(f"--examples is of a run. Found a comparison in {run}: name the folder of one of its runs.")
    say(console, f"{export_examples(run, path):,} examples are in {path}")
