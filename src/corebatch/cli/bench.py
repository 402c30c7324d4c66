"""`corebatch bench`: measurements on a user's own model and data."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from corebatch.bench import DEFAULT_PAIRS, parse_pairs
from corebatch.bench.frontier import plot_frontier
from corebatch.bench.gradients import WARM_UP
from corebatch.bench.models import PRESETS
from corebatch.bench.run import bench_gradients, plot, table_rows, write_lines
from corebatch.bench.step import bench_step
from corebatch.bench.step_plan import StepSettings, parse_arms, plan
from corebatch.bench.step_report import report_text, setting_name, target_rows, write_report
from corebatch.bench.step_report import table_rows as step_rows
from corebatch.cli.building import load_model, load_tokenizer, read_mixture
from corebatch.cli.settings import load_settings, read_config
from corebatch.cli.tables import table
from corebatch.errors import ConfigError
from corebatch.text import say

app = typer.Typer(no_args_is_help=True, help="Measure selection on your own model and data.")


@app.callback()
def _several() -> None:
    """Measure selection on your own model and data."""


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
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
    moments: Annotated[str, typer.Option(help="after how many AdamW steps to measure")] = "10,200",
    population: Annotated[int, typer.Option(help="examples with exact gradients")] = 384,
    large: Annotated[int, typer.Option(help="rows of the large batch")] = 128,
    budgets: Annotated[str, typer.Option(help="rows of the small batch")] = "64,32,16",
    draws: Annotated[int, typer.Option(help="large batches drawn from the population")] = 60,
    cost_ratio: Annotated[
        str | None,
        typer.Option(help="values of (forward + backward) / forward, such as 2.85,3.6, in place of the measured ones"),
    ] = None,
    cost_rows: Annotated[int, typer.Option(help="rows that forwards are timed on")] = 128,
    cost_rounds: Annotated[int, typer.Option(help="how often, all in turn")] = 5,
    warm_up: Annotated[
        int, typer.Option(help="the most steps of a normaliser's own history (CoLM's Adam map)")
    ] = WARM_UP,
    output: Annotated[Path | None, typer.Option(help="JSON lines go here, and two plots beside them")] = None,
) -> None:
    """Error, bias, length and cost of the small batch's gradient, for scorers, selectors and ways of scoring.

    *per cost*: effective examples per unit of cost; accumulating random examples is 1.

    `--key value` pairs change the config's keys, as for `train`. Nothing of `output_dir` is written.
    """
    console = Console(width=None if Console().is_terminal else 180)
    settings = load_settings(config, context.args)
    if warm_up < 0:
        raise ConfigError(f"--warm-up should not be negative. Found {warm_up}.")
    asked = [*(pair or []), *([] if methods is None else read_methods(methods))]
    pairs = parse_pairs(asked or DEFAULT_PAIRS)
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
        cost_ratios=_ratios(cost_ratio),
        cost_rows=cost_rows,
        cost_rounds=cost_rounds,
        skip_unfit=not asked,
        source_column=settings.coreset.source_column,
        warm_up=warm_up,
        seed=int(settings.training.get("seed", 0)),
        device="cuda" if torch.cuda.is_available() and not settings.training.get("use_cpu") else "cpu",
        console=console,
    )
    for metric in dict.fromkeys(line["metric"] for line in lines):
        console.print(table(f"Gradient of the small batch, {metric} metric", table_rows(lines, metric)))
    if output is not None:
        write_lines(lines, output)
        picture = output.with_suffix(".png")
        frontier = picture.with_name(f"{picture.stem}-frontier.png")
        plot(lines, picture)
        plot_frontier(lines, frontier)
        say(console, f"{len(lines)} lines in {output}, plots in {picture} and {frontier}")


@app.command()
def step(
    model: Annotated[
        str,
        typer.Argument(help=f"{', '.join(PRESETS)}, a folder with config.json, or a JSON file", metavar="MODEL"),
    ],
    adapter: Annotated[list[str] | None, typer.Option(help="lora (default) or full; may be repeated")] = None,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    checkpointing: Annotated[bool, typer.Option(help="recompute activations in the backward")] = True,
    large: Annotated[int, typer.Option(help="rows of the large batch, N")] = 128,
    micro_batch: Annotated[int, typer.Option(help="rows of one forward and backward")] = 8,
    ratios: Annotated[str, typer.Option(help="N / M of the small batches")] = "2,4,8",
    lengths: Annotated[
        Path | None, typer.Option(help="JSON lines with input_ids, prompt and completion, or text: lengths are drawn")
    ] = None,
    length: Annotated[int | None, typer.Option(help="tokens of every row, instead of --lengths (default: 512)")] = None,
    max_length: Annotated[int, typer.Option(help="longer rows are cut")] = 512,
    steps: Annotated[int, typer.Option(help="measured in a round, after one that is not")] = 3,
    rounds: Annotated[int, typer.Option(help="of all arms, in turn")] = 5,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="'name={scorer: loss}' adds or replaces an arm, 'name=null' leaves one out; may be repeated"),
    ] = None,
    random_weights: Annotated[bool, typer.Option(help="or the weights in MODEL's folder")] = True,
    seed: Annotated[int, typer.Option(help="of weights, lengths, token ids and order")] = 0,
    output: Annotated[Path | None, typer.Option(help="JSON lines are added here")] = None,
    report: Annotated[Path | None, typer.Option(help="a dated page in Markdown goes here")] = None,
) -> None:
    """Time and memory of a step: accumulation, the same grouped by length, a plain small batch, and corebatch.

    Every arm trains through the real trainer on random token ids, in turn; the ratios are taken within a round.
    """
    console = Console(width=None if Console().is_terminal else 200)
    for option, path in (("output", output), ("report", report)):
        if path is not None and path.is_dir():
            raise ConfigError(f"--{option} should name a file. Found the folder {path}.")
    settings = StepSettings(
        model=model,
        precision=precision,
        checkpointing=checkpointing,
        large=large,
        micro_batch=micro_batch,
        ratios=_numbers(ratios, "ratios"),
        lengths=lengths,
        length=length,
        max_length=max_length,
        steps=steps,
        rounds=rounds,
        arms=parse_arms(arm or []),
        random_weights=random_weights,
        seed=seed,
    )
    adapters = dict.fromkeys(adapter or ["lora"])
    plans = [plan(dataclasses.replace(settings, adapter=name)) for name in adapters]

    def tell(text: str) -> None:
        say(console, text)

    for note in plans[0].notes:
        tell(note)
    lines: list[dict[str, Any]] = []
    for made in plans:
        found = bench_step(made, tell)
        if output is not None:  # now: the next setting may take hours
            write_lines(found, output)
        console.print(table(setting_name(found[0]), step_rows(found)))
        lines += found
    console.print(table("Targets", target_rows(lines)))
    if report is not None:
        notes = list(dict.fromkeys(note for made in plans for note in made.notes))
        write_report(report_text(lines, shlex.join(["corebatch", *sys.argv[1:]]), notes), report)
    for what, path in ((f"{len(lines)} lines", output), ("A report", report)):
        if path is not None:
            say(console, f"{what} in {path}")


def read_methods(path: Path) -> list[Any]:
    """The list `methods` of a YAML file.

    Raises:
        ConfigError: the file cannot be read, or has no such list.
    """
    values = read_config(path)
    found = values.get("methods")
    if set(values) != {"methods"} or not isinstance(found, list) or not found:
        raise ConfigError(f"{path} should hold one key, methods, with a list. Found {', '.join(values) or 'nothing'}.")
    return found


def _ratios(text: str | None) -> list[float]:
    try:
        ratios = [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise ConfigError(f"--cost-ratio should be numbers with commas, such as 2.85,3.6. Found {text!r}.") from None
    if not all(1 < ratio < math.inf for ratio in ratios):
        raise ConfigError(f"--cost-ratio should be above 1: a backward costs something. Found {text!r}.")
    return ratios


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--{option} should be numbers with commas, such as 10,200. Found {text!r}.") from None
    if min(numbers) < 0:
        raise ConfigError(f"--{option} should not be negative. Found {text!r}.")
    return numbers
