"""`corebatch compare`: several arms from one config, at equal budgets, tuned, over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from corebatch.bench.runs import read_comparison, terminal_tables, write_outputs
from corebatch.bench.runs.ahead import end_in_words, plan_ahead
from corebatch.bench.runs.engine import Setup
from corebatch.bench.runs.engine import compare as run_comparison
from corebatch.bench.runs.from_config import Parts, reference_steps
from corebatch.bench.runs.power import power_sheet
from corebatch.bench.runs.processes import Processes
from corebatch.bench.runs.promises import promises_of
from corebatch.bench.runs.settings import MINUTES, QUICK
from corebatch.bench.runs.statistics import distributions
from corebatch.config.building import load_tokenizer, read_mixture
from corebatch.config.settings import Settings
from corebatch.errors import ConfigError
from corebatch.evaluation import parse_task
from corebatch.mixture import Mixture, row_lengths
from corebatch.rendering.page import require_matplotlib
from corebatch.rendering.sheet import rich_table
from corebatch.sampling.shares import plan_by_name
from corebatch.text import say
from corebatch.trainer.lengths import units_of_epoch


def compare(values: Mapping[str, Any], where: str, console: Console, *, quick: bool = False) -> Path:
    """Runs the comparison of a config, or what of it is missing, and returns its folder.

    Args:
        values: the keys of the config, `compare` among them.
        where: the config's name, for errors.
        quick: whether within MINUTES, in a folder beside the config's.

    Raises:
        ConfigError: settings that do not go together, or a folder that holds something else.
        MissingExtraError: scipy or matplotlib is not installed.
    """
    require_matplotlib()  # an error now, and not after hours
    setup, _ = prepared(quickly(values) if quick else values, where, console)
    if quick:
        setup = dataclasses.replace(setup, quick={"minutes": MINUTES, "steps": setup.steps})
    run_comparison(setup)
    show(setup.folder, console)
    return setup.folder


def plan(values: Mapping[str, Any], where: str, console: Console, earlier: Path | None = None) -> None:
    """Prints what the comparison of a config will cost and find, and keeps it in its folder's plan.json. `earlier`: a
    comparison whose spread is taken. Raises as `compare`."""
    setup, tokens_a_row = prepared(values, where, console)
    arms, found = plan_ahead(setup, earlier, tokens_a_row)
    for sheet in (arms, power_sheet(found)):
        if sheet is not None:
            console.print(rich_table(sheet, ("arm", "mean")))
    say(console, end_in_words(found))


def quickly(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what a quick comparison has where it says nothing, and a folder of its own beside output_dir."""
    folder = Path(str(values.get("output_dir") or "runs/compare"))
    block = values.get("compare") or {}
    if not isinstance(block, Mapping):
        raise ConfigError(f"compare should be a block of keys. Found {block!r}.")
    return {**values, "compare": {**QUICK, **block}, "output_dir": str(folder.with_name(f"{folder.name}-quick"))}


def prepared(values: Mapping[str, Any], where: str, console: Console) -> tuple[Setup, float]:
    """What is compared, and the mean trained tokens of a row. Raises as `compare`."""
    distributions()
    parts = Parts.of(values, where)
    settings, arms = parts.settings, parts.arms
    if not settings.data.eval_datasets:
        raise ConfigError(f"{where}: a comparison needs held-out data: the key 'eval_datasets' is missing.")
    for task in parts.own.tasks:
        parse_task(task)  # an error now, and not after hours
    tokenizer = load_tokenizer(settings.model)
    mixture = read_mixture(settings, tokenizer)
    rows = len(mixture.dataset)
    shares = parts.shares(mixture, read_mixture(settings, tokenizer, evaluation=True).dataset)
    drawn = arms[0].rows_drawn
    if rows < drawn:
        raise ConfigError(f"The data should hold a large batch of {drawn} rows at least. Found {rows}.")
    folder = Path(settings.training["output_dir"])
    promises, without_arm = promises_of(parts)
    setup = Setup(
        arms=arms,
        settings=parts.own,
        steps=reference_steps(settings, _rows_of_epoch(settings, mixture, drawn), drawn),
        rows=rows,
        learning_rate=float(settings.training_arguments().learning_rate),
        values=values,
        folder=folder,
        workers=Processes(parts),
        console=console,
        metric=parts.metric,
        shares=shares,
        promises=promises,
        without_arm=without_arm,
    )
    return setup, sum(one.trained_tokens for one in mixture.counts.values()) / rows


def _rows_of_epoch(settings: Settings, mixture: Mixture, drawn: int) -> int:
    """Or units of rows by length, of which a step draws as many."""
    if settings.coreset.by_length is not None:
        return units_of_epoch(settings.coreset, row_lengths(mixture.dataset), drawn)
    counts = {name: one.rows for name, one in mixture.counts.items() if one.rows}
    return plan_by_name(settings.coreset.sampling, counts).rows_of_epoch()


def show(folder: Path, console: Console, output: Path | None = None) -> Path:
    """Prints a comparison's tables, finished or not, writes its text and its page, and returns the page's path.
    `output`: the folder that they go to, instead of the comparison's own."""
    found = read_comparison(folder)
    for each in terminal_tables(found):
        console.print(each)
    text, page = write_outputs(found, output)
    say(console, f"The comparison is in {text} and {page}")
    return page
