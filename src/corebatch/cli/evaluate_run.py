"""What `corebatch evaluate` does: load, run, show, write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from corebatch.errors import ConfigError
from corebatch.evaluation import evaluate, run_lm_eval, write_json
from corebatch.evaluation.loading import DTYPES, load_trained
from corebatch.launch.tasks import FOLDER, LM_EVAL, file_name, make_tasks, show
from corebatch.record.provenance import versions
from corebatch.text import say


def evaluate_model(
    model: str,
    given: Sequence[Any],
    console: Console,
    *,
    limit: int | None = None,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    base_model: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
    lm_eval: Sequence[str] = (),
    lm_eval_path: Path | None = None,
) -> list[Path]:
    """Runs all tasks on one model, shows a table for each, and writes a JSON file for each; returns the files.

    Everything that can be wrong with the arguments is an error before the model is loaded; rows of a held-out loss are
    read when it is their turn, since they need the tokenizer. What was measured before an error is written.
    """
    if not given and not lm_eval:
        raise ConfigError("There should be a --task or --lm_eval. Found neither.")
    if lm_eval_path is not None and not lm_eval:
        raise ConfigError("--lm_eval_path goes with --lm_eval. Found it alone.")
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype should be one of {', '.join(DTYPES)}. Found {dtype!r}.")
    options: dict[str, Any] = {"limit": limit, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    tasks = make_tasks(given)
    for task in tasks:
        task.options(**options)  # refuses what is out of range
    names = [file_name(task.name) for task in tasks] + ([LM_EVAL] if lm_eval else [])
    targets = output_files(model, names, output, overwrite)
    loaded, tokenizer = load_trained(model, base_model, dtype=dtype, trust_remote_code=trust_remote_code)
    try:
        loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device}: the model cannot go there: {error}") from error
    about = {"model": model, "dtype": dtype, "versions": versions()}
    for task, target in zip(tasks, targets, strict=False):
        result = evaluate(loaded, tokenizer, task, progress=console.is_terminal, **options)
        show(task.name, result, console)
        write_json({**result.to_dict(), **about}, target)
    if lm_eval:
        found = run_lm_eval(
            loaded, tokenizer, lm_eval, include_path=lm_eval_path, batch_size=batch_size or 16, limit=limit
        )
        show("lm-evaluation-harness", found, console)
        write_json({**found.to_dict(), **about}, targets[-1])
    say(console, f"Results in {', '.join(map(str, targets))}")
    return targets


def output_files(model: str, names: Sequence[str], output: Path | None, overwrite: bool) -> list[Path]:
    """Where the results go: a file a task. Raises ConfigError: a file is there already and may not be replaced, or
    `output` does not suit the tasks."""
    if output is not None and output.suffix == ".json":
        if len(names) > 1:
            raise ConfigError(f"--output should be a folder for {len(names)} tasks. Found the file {output}.")
        targets = [output]
    else:
        if output is not None:
            folder = output
        else:
            folder = Path(model) / FOLDER if Path(model).is_dir() else Path(FOLDER) / model.replace("/", "--")
        if folder.is_file():
            raise ConfigError(f"{folder} should be a folder. Found a file.")
        targets = [folder / f"{name}.json" for name in names]
    there = [target for target in targets if target.exists()]
    if there and not overwrite:
        raise ConfigError(f"{there[0]} is there already. Replace it with --overwrite, or choose another --output.")
    return targets
