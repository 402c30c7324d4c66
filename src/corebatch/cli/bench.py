"""`corebatch bench`: the commands' options. What they do is in bench_run.py, which imports torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

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
        int | None, typer.Option(help="the most steps of a normaliser's own history (CoLM's Adam map); default: 100")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSON lines go here, and two plots beside them")] = None,
) -> None:
    """Error, bias, length and cost of the small batch's gradient, for scorers, selectors and ways of scoring.

    *per cost*: effective examples per unit of cost; accumulating random examples is 1.

    `--key value` pairs change the config's keys, as for `train`. Nothing of `output_dir` is written.
    """
    from corebatch.cli.bench_run import run_gradients

    run_gradients(
        config,
        context.args,
        Console(width=None if sys.stdout.isatty() else 180),
        pairs=pair or [],
        methods=methods,
        moments=moments,
        population=population,
        large=large,
        budgets=budgets,
        draws=draws,
        cost_ratio=cost_ratio,
        cost_rows=cost_rows,
        cost_rounds=cost_rounds,
        warm_up=warm_up,
        output=output,
    )


@app.command()
def step(
    model: Annotated[
        str,
        typer.Argument(help="a preset such as llama-10m, a folder with config.json, or a JSON file", metavar="MODEL"),
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
    from corebatch.cli.bench_run import run_step

    run_step(
        model,
        Console(width=None if sys.stdout.isatty() else 200),
        adapters=adapter or ["lora"],
        arms=arm or [],
        ratios=ratios,
        output=output,
        report=report,
        precision=precision,
        checkpointing=checkpointing,
        large=large,
        micro_batch=micro_batch,
        lengths=lengths,
        length=length,
        max_length=max_length,
        steps=steps,
        rounds=rounds,
        random_weights=random_weights,
        seed=seed,
    )
