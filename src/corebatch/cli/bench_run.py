"""What `corebatch bench` does: measurements on a user's own model and data."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from corebatch.bench.gradients import DEFAULT_PAIRS, parse_pairs
from corebatch.bench.gradients.estimate import WARM_UP
from corebatch.bench.gradients.frontier import plot_frontier
from corebatch.bench.gradients.run import bench_gradients, plot, table_rows, write_lines
from corebatch.bench.steps.measure import bench_step
from corebatch.bench.steps.plan import StepSettings, parse_arms, plan
from corebatch.bench.steps.report import report_text, setting_name, target_rows, write_report
from corebatch.bench.steps.report import table_rows as step_rows
from corebatch.cli.tables import table
from corebatch.config.building import SOURCE_COLUMN, load_model, load_tokenizer, read_mixture
from corebatch.config.settings import load_settings
from corebatch.config.yaml_file import read_config
from corebatch.errors import ConfigError
from corebatch.text import say


def run_gradients(
    config: Path,
    overrides: Sequence[str],
    console: Console,
    *,
    pairs: Sequence[Any],
    methods: Path | None,
    moments: str,
    population: int,
    large: int,
    budgets: str,
    draws: int,
    cost_ratio: str | None,
    cost_rows: int,
    cost_rounds: int,
    warm_up: int | None,
    output: Path | None,
) -> None:
    """What `corebatch bench gradients` does; for the arguments see there.

    Raises:
        ConfigError: an argument that is out of range or cannot be read.
    """
    settings = load_settings(config, overrides)
    warm_up = WARM_UP if warm_up is None else warm_up
    if warm_up < 0:
        raise ConfigError(f"--warm-up should not be negative. Found {warm_up}.")
    asked = [*pairs, *([] if methods is None else read_methods(methods))]
    parsed = parse_pairs(asked or DEFAULT_PAIRS)
    tokenizer = load_tokenizer(settings.model)
    dataset = read_mixture(settings, tokenizer).dataset
    lines = bench_gradients(
        load_model(settings),
        tokenizer,
        dataset,
        parsed,
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
        source_column=SOURCE_COLUMN,
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


def run_step(
    model: str,
    console: Console,
    *,
    adapters: Sequence[str],
    arms: Sequence[str],
    ratios: str,
    output: Path | None,
    report: Path | None,
    **options: Any,
) -> None:
    """What `corebatch bench step` does; `options` are the other fields of StepSettings.

    Raises:
        ConfigError: an argument that is out of range or cannot be read.
    """
    for option, path in (("output", output), ("report", report)):
        if path is not None and path.is_dir():
            raise ConfigError(f"--{option} should name a file. Found the folder {path}.")
    settings = StepSettings(model=model, ratios=_numbers(ratios, "ratios"), arms=parse_arms(arms), **options)
    plans = [plan(dataclasses.replace(settings, adapter=name)) for name in dict.fromkeys(adapters)]

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
