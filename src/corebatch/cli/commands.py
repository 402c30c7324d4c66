"""The commands, their arguments and what their help says.

Nothing here imports torch or transformers: each command imports what it needs, so that help is there at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corebatch import __version__
from corebatch.cli.advise import advise
from corebatch.cli.bench_gradients import gradients
from corebatch.cli.bench_step import step
from corebatch.cli.cache import app as cache
from corebatch.cli.console import console
from corebatch.cli.evaluate import evaluate
from corebatch.cli.mixture_search import app as mixture
from corebatch.cli.subset import subset
from corebatch.cli.train_commands import WithKeys, compare, train, validate

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune on a large batch's update at a small batch's price.",
)
_PASS = {"allow_extra_args": True, "ignore_unknown_options": True}


def _version(asked: bool) -> None:
    if asked:
        print(f"corebatch {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune on a large batch's update at a small batch's price."""


app.command(context_settings=_PASS, cls=WithKeys)(train)
app.command(context_settings=_PASS, cls=WithKeys)(validate)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="the folder of a run or a comparison", metavar="RUN")],
    output: Annotated[Path | None, typer.Option(help="where the page goes, instead of RUN: a file or a folder")] = None,
    examples: Annotated[
        Path | None, typer.Option(help="also write what was done with each example: a .parquet or .csv file")
    ] = None,
    comparison: Annotated[
        Path | None,
        typer.Option(help="a comparison of the run's config: the report tells what it found", metavar="DIR"),
    ] = None,
    show_it: Annotated[bool, typer.Option("--open", help="open the page in a browser")] = False,
) -> None:
    """Show what a run did, and write its page."""
    from corebatch.cli.report import report as show

    show(run, console(), output, examples, comparison, show_it)


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="where the run goes; replaced if it is an earlier demo's")] = Path(
        "runs/demo"
    ),
    steps: Annotated[int | None, typer.Option(help="optimizer steps (default: a few minutes' worth)")] = None,
    seed: Annotated[int, typer.Option(help="of data, training and selection", min=0, max=2**32 - 1)] = 0,
) -> None:
    """Fine-tune SmolLM2-135M on an imbalanced mixture of reasoning tasks, and show what that did."""
    from corebatch.cli.demo import demo as run

    run(output_dir, console(), steps=steps, seed=seed)


app.command(context_settings=_PASS)(advise)
app.command(context_settings=_PASS)(compare)
app.command(context_settings=_PASS)(subset)
app.command()(evaluate)
bench = typer.Typer(no_args_is_help=True, help="Measure selection on your own model and data.")
bench.command(context_settings=_PASS)(gradients)
bench.command()(step)
app.add_typer(bench, name="bench")
app.add_typer(cache, name="cache")
app.add_typer(mixture, name="mixture")


@app.command()
def env() -> None:
    """Print versions and hardware, for bug reports."""
    from corebatch.cli.env import env as show

    show(console())
