"""What `corebatch bench step` does: measures, shows, writes."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from corebatch.bench.gradients.lines import write_lines
from corebatch.bench.steps.measure import bench_step
from corebatch.bench.steps.plan import StepSettings, parse_arms, plan
from corebatch.bench.steps.report import report_text, setting_name, table_rows, target_rows, write_report
from corebatch.cli.option_values import whole_numbers
from corebatch.errors import ConfigError
from corebatch.rendering.sheet import table
from corebatch.text import say


def run_step(
    model: str,
    console: Console,
    *,
    adapter: Sequence[str] | None,
    arm: Sequence[str] | None,
    ratios: str,
    output: Path | None,
    report: Path | None,
    **options: Any,
) -> None:
    """What `corebatch bench step` does; `options` are the other fields of StepSettings. Raises ConfigError: an argument
    that is out of range or cannot be read."""
    for option, path in (("output", output), ("report", report)):
        if path is not None and path.is_dir():
            raise ConfigError(f"--{option} should name a file. Found the folder {path}.")
    settings = StepSettings(model=model, ratios=whole_numbers(ratios, "ratios"), arms=parse_arms(arm or []), **options)
    plans = [plan(dataclasses.replace(settings, adapter=name)) for name in dict.fromkeys(adapter or ["lora"])]

    def tell(text: str) -> None:
        say(console, text)

    for note in plans[0].notes:
        tell(note)
    lines: list[dict[str, Any]] = []
    for made in plans:
        found = bench_step(made, tell)
        if output is not None:  # now: the next setting may take hours
            write_lines(found, output)
        console.print(table(setting_name(found[0]), table_rows(found)))
        lines += found
    console.print(table("Targets", target_rows(lines)))
    if report is not None:
        notes = list(dict.fromkeys(note for made in plans for note in made.notes))
        write_report(report_text(lines, shlex.join(["corebatch", *sys.argv[1:]]), notes), report)
    for what, path in ((f"{len(lines)} lines", output), ("A report", report)):
        if path is not None:
            say(console, f"{what} in {path}")
