"""`corebatch evaluate`: the command's options. What it does is in evaluate_run.py, which imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corebatch.cli.console import console


def evaluate(
    model: Annotated[str, typer.Argument(help="a run's folder, a model's folder, or a hub id", metavar="RUN|MODEL")],
    task: Annotated[
        list[str] | None,
        typer.Option(help="name:path,key=value (see docs/running/evaluation.md); may be repeated", metavar="TASK"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="at most so many items of each task")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch_size", "--batch-size", help="rows of a forward")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max_new_tokens", "--max-new-tokens", help="of a generated answer")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="a folder, or a .json file for one task; default: evaluation/ in the run")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace earlier results")] = False,
    base_model: Annotated[
        str | None, typer.Option("--base_model", "--base-model", help="of an adapter, if it has moved")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto (as saved)")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust_remote_code", "--trust-remote-code", help="run code that comes with the model")
    ] = False,
    lm_eval: Annotated[
        str | None, typer.Option("--lm_eval", "--lm-eval", help="tasks of the lm-evaluation-harness, with commas")
    ] = None,
    lm_eval_path: Annotated[
        Path | None, typer.Option("--lm_eval_path", "--lm-eval-path", help="a folder with task files (YAML) for it")
    ] = None,
) -> None:
    """Measure a trained model: exact answers, likelihoods and held-out loss, with intervals, and as JSON."""
    options = dict(locals())  # by their names
    from corebatch.cli.evaluate_run import evaluate_model

    harness = [name.strip() for name in (lm_eval or "").split(",") if name.strip()]
    evaluate_model(given=options.pop("task") or [], console=console(), **{**options, "lm_eval": harness})
