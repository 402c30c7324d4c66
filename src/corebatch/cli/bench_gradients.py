"""`corebatch bench gradients`: the options. What it does is in run_gradients.py, which imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corebatch.cli.console import console


def gradients(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="the same YAML file as for `train`", metavar="CONFIG")],
    pair: Annotated[
        list[str] | None,
        typer.Option(
            help="'scorer(option=value) x selector', with '@ window(tokens=64)' or another way; or a name and a "
            "coreset block, 'name={recipe: colm, small_sources: none}'; repeatable"
        ),
    ] = None,
    methods: Annotated[
        Path | None,
        typer.Option(help="a YAML file with the list `methods`: texts as for --pair, or {name, coreset: {...}}"),
    ] = None,
    moments: Annotated[str, typer.Option(help="after how many AdamW steps to measure")] = "200",
    population: Annotated[int, typer.Option(help="examples with exact gradients")] = 384,
    large: Annotated[int, typer.Option(help="rows of the large batch")] = 128,
    budgets: Annotated[str, typer.Option(help="rows of the small batch")] = "64,32,16",
    draws: Annotated[int, typer.Option(help="steps of the series, each with a large batch of its own")] = 1600,
    objective: Annotated[
        str, typer.Option(help="the large batch's claim: tokens, sources, or both: tokens,sources")
    ] = "tokens",
    cost_ratio: Annotated[
        str | None,
        typer.Option(help="values of (forward + backward) / forward, such as 2.85,3.6, in place of the measured ones"),
    ] = None,
    cost_rows: Annotated[int, typer.Option(help="rows that forwards are timed on")] = 128,
    cost_rounds: Annotated[int, typer.Option(help="how often, all in turn")] = 5,
    warm_up: Annotated[
        int | None,
        typer.Option(help="the most steps before those that are measured; default: 100"),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSON lines go here, and two plots beside them")] = None,
) -> None:
    """Error, bias, weights and cost of the small batch's gradient over many steps: scorers, selectors, ways of scoring.

    *effective*: the share of the large batch that a random choice would need to be as near in averages over so many
    steps: unbiased choices keep it, bias eats it up. *per cost*: effective examples by what a step costs; accumulating
    random examples is 1. The longest window sorts.

    `--key value` pairs change the config's keys, as for `train`. Nothing of `output_dir` is written.
    """
    options = dict(locals())  # by their names
    from corebatch.cli.run_gradients import run_gradients

    run_gradients(overrides=options.pop("context").args, console=console(180), **options)
