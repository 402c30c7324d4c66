"""`corebatch advise`: the command's options. What it does is in bench/advise, which imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corebatch.cli.console import console
from corebatch.cli.train_commands import CONFIG


def advise(
    context: typer.Context,
    config: CONFIG,
    minutes: Annotated[float, typer.Option(help="for all measurements together")] = 5.0,
    checkpoints: Annotated[
        Path | None, typer.Option(help="a folder with checkpoints of this config: noise over the run")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="the folder; default: the config's output_dir-advice")] = None,
) -> None:
    """Measure what limits the config's run, before it is paid for, and write a config that sets what pays; `--key
    value` pairs change keys."""
    from corebatch.bench.advise.engine import advise as run
    from corebatch.config.values import read_values

    values, where = read_values(config, context.args)
    run(values, where, minutes=minutes, checkpoints=checkpoints, output=output, console=console(140))
