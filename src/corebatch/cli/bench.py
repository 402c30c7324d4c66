"""`corebatch bench`: measurements on a user's own model and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from corebatch.bench import DEFAULT_PAIRS, parse_pair
from corebatch.bench.run import bench_gradients, plot, table_rows, write_lines
from corebatch.cli.building import load_model, load_tokenizer, read_mixture
from corebatch.cli.settings import load_settings
from corebatch.cli.tables import table
from corebatch.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Measure selection on your own model and data.")


@app.callback()
def _several() -> None:
    """Measure selection on your own model and data."""


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def gradients(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="the same YAML file as for `train`", metavar="CONFIG")],
    pair: Annotated[
        list[str] | None, typer.Option(help="'scorer(option=value) x selector', as often as wanted")
    ] = None,
    moments: Annotated[str, typer.Option(help="after how many AdamW steps to measure")] = "10,200",
    population: Annotated[int, typer.Option(help="examples with exact gradients")] = 384,
    large: Annotated[int, typer.Option(help="rows of the large batch")] = 128,
    budgets: Annotated[str, typer.Option(help="rows of the small batch")] = "64,32,16",
    draws: Annotated[int, typer.Option(help="large batches drawn from the population")] = 60,
    output: Annotated[Path | None, typer.Option(help="JSON lines go here, and a plot beside them")] = None,
) -> None:
    """Error, bias, length and cost of the small batch's gradient, for pairs of scorer and selector.

    `--key value` pairs change the config's keys, as for `train`. Nothing of `output_dir` is written.
    """
    console = Console(width=None if Console().is_terminal else 180)
    settings = load_settings(config, context.args)
    pairs = [parse_pair(text) for text in pair or DEFAULT_PAIRS]
    tokenizer = load_tokenizer(settings.model)
    dataset = read_mixture(settings, tokenizer).dataset
    lines = bench_gradients(
        load_model(settings),
        tokenizer,
        dataset,
        pairs,
        moments=_numbers(moments, "moments"),
        population=population,
        large=large,
        budgets=_numbers(budgets, "budgets"),
        draws=draws,
        learning_rate=float(settings.training.get("learning_rate", 5e-4)),
        b_std=0.02 if settings.lora else None,
        seed=int(settings.training.get("seed", 0)),
        device="cuda" if torch.cuda.is_available() and not settings.training.get("use_cpu") else "cpu",
        console=console,
    )
    for metric in dict.fromkeys(line["metric"] for line in lines):
        console.print(table(f"Gradient of the small batch, {metric} metric", table_rows(lines, metric)))
    if output is not None:
        write_lines(lines, output)
        plot(lines, output.with_suffix(".png"))
        console.print(f"{len(lines)} lines in {output}, a plot in {output.with_suffix('.png')}", highlight=False)


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--{option} should be numbers with commas, such as 10,200. Found {text!r}.") from None
    if min(numbers) < 0:
        raise ConfigError(f"--{option} should not be negative. Found {text!r}.")
    return numbers
