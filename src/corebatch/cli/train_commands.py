"""`corebatch train`, `corebatch validate` and `corebatch compare`: the arguments, and help with the keys of the config.

Nothing here imports torch or transformers, so that help is there at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from corebatch.cli.console import console

CONFIG = Annotated[Path, typer.Argument(help="a YAML file; its keys are Hugging Face's own", metavar="CONFIG")]


class WithKeys(TyperCommand):
    """Help that ends with the keys of the config."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        from corebatch.cli.key_help import print_keys

        print_keys(console())


def train(context: typer.Context, config: CONFIG) -> None:
    """Fine-tune by a config file; `--key value` pairs change its keys (`--coreset.pool_factor 4`)."""
    from corebatch.cli.train import train as run
    from corebatch.config.settings import load_settings

    run(load_settings(config, context.args), console())


def validate(
    context: typer.Context,
    config: CONFIG,
    rows: Annotated[int, typer.Option(help="so many rows of each source are shown as text")] = 1,
    fast: Annotated[bool, typer.Option("--fast", help="look at a sample of the data, and make no step")] = False,
) -> None:
    """Do all that `train` does up to its first step, and show what would be trained; `output_dir` is not touched."""
    from corebatch.cli.validate import validate as run
    from corebatch.config.settings import load_settings

    run(load_settings(config, context.args), console(), rows=rows, fast=fast)


def compare(
    context: typer.Context,
    config: CONFIG,
    plan: Annotated[
        bool, typer.Option("--plan", help="tell what it will cost and find; train nothing but pilots, if needed")
    ] = False,
    spread_of: Annotated[
        Path | None,
        typer.Option(help="with --plan: an earlier comparison's folder, whose spread over seeds is taken"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="an answer within ten minutes, beside the folder; says what it cannot tell")
    ] = False,
) -> None:
    """Compare the config's selection with plain training and other arms, at equal budgets, tuned, over seeds."""
    from corebatch.cli.compare import compare as run
    from corebatch.cli.compare import plan as run_plan
    from corebatch.config.values import read_values

    if spread_of is not None and not plan:
        raise typer.BadParameter("--spread-of is for --plan.")
    if quick and plan:
        raise typer.BadParameter("--plan is for a whole comparison: leave out --quick.")
    values, where = read_values(config, context.args)
    if plan:
        run_plan(values, where, console(), spread_of)
    else:
        run(values, where, console(), quick=quick)
