"""`corebatch bench step`: the options. What it does is in run_step.py, which imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corebatch.cli.console import console


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
    """Time and memory of a step: accumulation, a plain small batch, both sorted by length, and corebatch.

    Every arm trains through the real trainer on random token ids, in turn; the ratios are taken within a round.
    """
    options = dict(locals())  # by their names
    from corebatch.cli.run_step import run_step

    run_step(console=console(200), **options)
