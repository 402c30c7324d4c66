"""The command line. Errors about input are one message and exit code 2, never a traceback.

Nothing here imports torch or transformers: each command imports what it needs, so that help is there at once.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from corebatch import __version__
from corebatch.cli.bench import app as bench
from corebatch.cli.cache import app as cache
from corebatch.cli.evaluate import evaluate
from corebatch.cli.failures import message
from corebatch.config.quiet import hush
from corebatch.text import visible

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune on a large batch's update at a small batch's price.",
)
_PASS = {"allow_extra_args": True, "ignore_unknown_options": True}
_CONFIG = Annotated[Path, typer.Argument(help="a YAML file; its keys are Hugging Face's own", metavar="CONFIG")]


class WithKeys(TyperCommand):
    """Help that ends with the keys of the config."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        from corebatch.cli.key_help import print_keys

        print_keys(console())


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


def console() -> Console:
    """Where results go; 100 columns where there is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 100)


@app.command(context_settings=_PASS, cls=WithKeys)
def train(context: typer.Context, config: _CONFIG) -> None:
    """Fine-tune by a config file; `--key value` pairs change its keys (`--coreset.pool_factor 4`)."""
    from corebatch.cli.train import train as run
    from corebatch.config.settings import load_settings

    run(load_settings(config, context.args), console())


@app.command(context_settings=_PASS, cls=WithKeys)
def validate(
    context: typer.Context,
    config: _CONFIG,
    rows: Annotated[int, typer.Option(help="so many rows of each source are shown as text")] = 1,
    fast: Annotated[bool, typer.Option("--fast", help="look at a sample of the data, and make no step")] = False,
) -> None:
    """Do all that `train` does up to its first step, and show what would be trained; `output_dir` is not touched."""
    from corebatch.cli.validate import validate as run
    from corebatch.config.settings import load_settings

    run(load_settings(config, context.args), console(), rows=rows, fast=fast)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="the folder of a run or a comparison", metavar="RUN")],
    output: Annotated[Path | None, typer.Option(help="where the page goes, instead of RUN: a file or a folder")] = None,
) -> None:
    """Show what a run did, and write its page."""
    from corebatch.cli.report import report as show

    show(run, console(), output)


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


@app.command(context_settings=_PASS)
def compare(context: typer.Context, config: _CONFIG) -> None:
    """Compare the config's selection with plain training and other arms, at equal budgets, tuned, over seeds."""
    from corebatch.cli.compare import compare as run
    from corebatch.config.values import read_values

    run(*read_values(config, context.args), console())


app.command(name="evaluate")(evaluate)
app.add_typer(bench, name="bench")
app.add_typer(cache, name="cache")


@app.command()
def env() -> None:
    """Print versions and hardware, for bug reports."""
    from corebatch.cli.env import env as show

    show(console())


class _Plain(logging.Formatter):
    """Names of users come into warnings too."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), lines=True)


def _show_all_text() -> None:
    """What the terminal's encoding has not is written out, and warnings are plain text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Plain())


def main() -> None:
    """The entry point `corebatch`. With COREBATCH_TRACEBACK set, every error shows where it was raised."""
    hush()
    _show_all_text()
    try:
        app()
    except KeyboardInterrupt:
        print("corebatch: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        told = None if os.environ.get("COREBATCH_TRACEBACK") else message(error)
        if told is None:
            raise
        print(f"corebatch: {told}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
