"""The command line. Errors about input are one message and exit code 2, never a traceback."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from corebatch.cli.evaluate import evaluate
from corebatch.errors import CorebatchError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune on a large batch's update at a small batch's price.",
)
_PASS = {"allow_extra_args": True, "ignore_unknown_options": True}
_CONFIG = Annotated[Path, typer.Argument(help="a YAML file; its keys are Hugging Face's own", metavar="CONFIG")]


def console() -> Console:
    """Where results go; 100 columns where there is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 100)


@app.command(context_settings=_PASS)
def train(context: typer.Context, config: _CONFIG) -> None:
    """Fine-tune by a config file; `--key value` pairs change its keys (`--coreset.pool_factor 4`)."""
    from corebatch.cli.settings import load_settings
    from corebatch.cli.train import train as run

    run(load_settings(config, context.args), console())


@app.command(context_settings=_PASS)
def validate(
    context: typer.Context,
    config: _CONFIG,
    rows: Annotated[int, typer.Option(help="so many rows of each source are shown as text")] = 1,
    fast: Annotated[bool, typer.Option("--fast", help="look at a sample of the data, and make no step")] = False,
) -> None:
    """Do all that `train` does up to its first step, and show what would be trained; `output_dir` is not touched."""
    from corebatch.cli.settings import load_settings
    from corebatch.cli.validate import validate as run

    run(load_settings(config, context.args), console(), rows=rows, fast=fast)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="the folder of a run or a comparison", metavar="RUN")]) -> None:
    """Show what a run did, and write its page."""
    from corebatch.cli.report import report as show

    show(run, console())


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="where the run goes; replaced if it is an earlier demo's")] = Path(
        "runs/demo"
    ),
    steps: Annotated[int | None, typer.Option(help="optimizer steps (default: a few minutes' worth)")] = None,
    seed: Annotated[int, typer.Option(help="of data, training and selection")] = 0,
) -> None:
    """Fine-tune SmolLM2-135M on an imbalanced mixture of reasoning tasks, and show what that did."""
    from corebatch.cli.demo import demo as run

    run(output_dir, console(), steps=steps, seed=seed)


@app.command(context_settings=_PASS)
def compare(context: typer.Context, config: _CONFIG) -> None:
    """Compare the config's selection with plain training and other arms, at equal budgets, tuned, over seeds."""
    from corebatch.cli.compare import compare as run
    from corebatch.cli.settings import read_values

    run(*read_values(config, context.args), console())


app.command(name="evaluate")(evaluate)


@app.command()
def env() -> None:
    """Print versions and hardware, for bug reports."""
    from corebatch.cli.env import env as show

    show(console())


def _add_bench() -> None:
    from corebatch.cli.bench import app as bench

    app.add_typer(bench, name="bench")


def hush() -> None:
    """Keeps back what other packages say and no user could change."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # peft 0.21 reads an attribute that transformers 5 calls deprecated
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # bitsandbytes 0.50 asks, whenever it is imported on a CPU, for a package that fetches a kernel from a hub
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def main() -> None:
    """The entry point `corebatch`."""
    hush()
    if "bench" in sys.argv[1:2] or not sys.argv[1:] or "--help" in sys.argv[1:2]:
        _add_bench()  # it imports torch and transformers, which `corebatch report` need not wait for
    try:
        app()
    except (CorebatchError, ImportError) as error:
        if isinstance(error, ImportError) and "pip install" not in str(error):
            raise
        print(f"corebatch: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("corebatch: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
