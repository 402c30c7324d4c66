"""The lines of a measurement: written to a file, and as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from corebatch.bench.gradients.windows import ADAM


def write_lines(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Appends JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def longest(line: Mapping[str, Any]) -> str:
    """The longest window that a line has: what methods are ordered by."""
    return max((length for length in line["windows"] if length.isdigit()), key=int)


def worth(line: Mapping[str, Any], cost: float) -> float:
    """Effective examples over the longest window by the cost of a step."""
    return float(line["windows"][longest(line)]["effective"] * line["large"] / cost)


def table_rows(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of one moment and metric as rows of a table: of a budget what is worth most by its tokens over the
    longest window first.

    Where values of c were given (`cost_ratios`), what is paid is told for them in the place of the measured ones, and
    the first of them sorts. Titles have two lines, so that a long method fits a console of 180 columns.
    """
    rows = []
    for line in lines:
        windows, weights = line["windows"], line["weights"]
        paid = {f"c = {c}": at for c, at in line["cost_ratios"].items()} or {"of tokens": line}
        worths = {f"per cost\n{of}": worth(line, at["cost_tokens"]) for of, at in paid.items()}
        first = next(iter(paid.values()))
        worths["of\npositions"] = worth(line, first["cost_positions"])
        lengths = [length for length in windows if length.isdigit()]
        row = {
            "M": line["budget"],
            "method": line["method"],
            f"effective over\n{' / '.join(lengths)}": " ".join(f"{windows[n]['effective']:.2f}" for n in lengths),
            "Adam's\n0.9": f"{windows[ADAM]['effective']:.2f}",
            "bias\ngiven": f"{100 * line['bias_given_pool']:.0f} %",
            "length": f"{windows[longest(line)]['length']:.2f}",
            "weights of\nsources": _range(weights["sources"].values()),
            "of\nexamples": _range((weights["least"], weights["greatest"])),
            "cost by\ntokens": f"{first['cost_tokens']:.1f}",
            **{name: f"{value:.2f}" for name, value in worths.items()},
        }
        rows.append((-line["budget"], -next(iter(worths.values())), row))
    return [row for *_, row in sorted(rows, key=lambda each: each[:2])]


def _range(values: Iterable[float]) -> str:
    known = list(values)
    return f"{min(known):.2f}-{max(known):.2f}"
