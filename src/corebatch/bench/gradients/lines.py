"""The lines of a measurement: written to a file, and as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_lines(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Appends JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def table_rows(lines: Sequence[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The lines of one metric as rows of a table: within a moment and a budget the most effective examples by cost
    first.

    The cost is that by tokens, in trainings of one random example. Where values of c were given (`per_cost_ratios`)
    they are printed in the place of the measured ones, and the first of them sorts. Titles have two lines, so that a
    long method fits a console of 180 columns.
    """
    rows = []
    for line in lines:
        if line["metric"] != metric:
            continue
        given = line["per_cost_ratios"]
        if given:
            cost = next(iter(given.values()))["cost_tokens"]
            worth = {f"per cost\nc = {c}": at["tokens"] for c, at in given.items()}
            worth |= {f"reused\nc = {c}": at["tokens_reuse"] for c, at in given.items()}
        else:
            cost = line["cost_tokens"]
            worth = {
                "per cost": line["per_cost_tokens"],
                "per cost,\ncheckpointed": line["per_cost_tokens_checkpointing"],
                "and\nreused": line["per_cost_tokens_reuse"],
            }
        row = {
            "after": line["after_steps"],
            "M": line["budget"],
            "method": line["method"],
            "eff.": f"{line['effective_batch']:.2f}",
            "bias": f"{100 * line['bias_share']:.0f} %",
            "length\nto large": f"{line['length_to_large']:.2f}",
            "s": f"{line['s']:.2f}",
            "cost by\ntokens": f"{cost:.1f}",
            **{name: "-" if value is None else f"{value:.2f}" for name, value in worth.items()},
        }
        rows.append((line["after_steps"], -line["budget"], -next(iter(worth.values())), row))
    return [row for *_, row in sorted(rows, key=lambda each: each[:3])]
