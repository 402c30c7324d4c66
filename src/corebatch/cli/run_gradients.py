"""What `corebatch bench gradients` does: measures on a user's own model and data, shows, writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from corebatch.bench.gradients import DEFAULT_METHODS, parse_methods
from corebatch.bench.gradients.estimate import WARM_UP
from corebatch.bench.gradients.lines import table_rows, write_lines
from corebatch.bench.gradients.plots import plot, plot_frontier
from corebatch.bench.gradients.run import bench_gradients
from corebatch.cli.option_values import cost_ratios, whole_numbers
from corebatch.config.building import SOURCE_COLUMN, load_model, load_tokenizer, read_mixture
from corebatch.config.settings import load_settings
from corebatch.config.yaml_file import read_lines
from corebatch.errors import ConfigError
from corebatch.rendering.page import require_matplotlib
from corebatch.rendering.sheet import table
from corebatch.text import say


def run_gradients(
    config: Path,
    overrides: Sequence[str],
    console: Console,
    *,
    pair: Sequence[str] | None,
    methods: Path | None,
    moments: str,
    budgets: str,
    cost_ratio: str | None,
    warm_up: int | None,
    objective: str,
    output: Path | None,
    **others: Any,
) -> None:
    """What `corebatch bench gradients` does; for the arguments see there. `others` are settings of `bench_gradients`.
    Raises ConfigError: an argument that is out of range or cannot be read; MissingExtraError: plots need matplotlib."""
    if output is not None:
        require_matplotlib()  # an error now, and not after the measurement
    settings = load_settings(config, overrides)
    warm_up = WARM_UP if warm_up is None else warm_up
    if warm_up < 0:
        raise ConfigError(f"--warm-up should not be negative. Found {warm_up}.")
    asked = [*(pair or []), *([] if methods is None else read_methods(methods))]
    parsed = parse_methods(asked or DEFAULT_METHODS)
    tokenizer = load_tokenizer(settings.model)
    dataset = read_mixture(settings, tokenizer).dataset
    lines = bench_gradients(
        load_model(settings),
        tokenizer,
        dataset,
        parsed,
        moments=whole_numbers(moments, "moments"),
        budgets=whole_numbers(budgets, "budgets"),
        learning_rate=float(settings.training.get("learning_rate", 5e-4)),
        b_std=0.02 if settings.lora else None,
        cost_ratios=cost_ratios(cost_ratio),
        skip_unfit=not asked,
        source_column=SOURCE_COLUMN,
        warm_up=warm_up,
        objectives=[part.strip() for part in objective.split(",")],
        micro_batch=int(settings.training.get("per_device_train_batch_size", 8)),
        seed=int(settings.training.get("seed", 0)),
        device="cuda" if torch.cuda.is_available() and not settings.training.get("use_cpu") else "cpu",
        console=console,
        **others,
    )
    tables: dict[str, list[Any]] = {}
    for line in lines:
        title = "Gradient of the small batch after {after_steps} steps, {metric} metric, objective {objective}"
        tables.setdefault(title.format_map(line), []).append(line)
    for title, here in tables.items():
        console.print(table(title, table_rows(here)))
    if output is not None:
        write_lines(lines, output)
        picture = output.with_suffix(".png")
        frontier = picture.with_name(f"{picture.stem}-frontier.png")
        plot(lines, picture)
        plot_frontier(lines, frontier)
        say(console, f"{len(lines)} lines in {output}, plots in {picture} and {frontier}")


def read_methods(path: Path) -> list[Any]:
    """The list `methods` of a YAML file. Raises ConfigError: the file cannot be read, or has no such list."""
    values = read_lines(path)[0]
    found = values.get("methods")
    if set(values) != {"methods"} or not isinstance(found, list) or not found:
        raise ConfigError(f"{path} should hold one key, methods, with a list. Found {', '.join(values) or 'nothing'}.")
    return found
