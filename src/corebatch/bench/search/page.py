"""What a search found, as text, as JSON, and as a config that trains with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from corebatch.bench.search.bayes import Found
from corebatch.bench.search.engine import MEASURED, Search
from corebatch.files import plain, write_json, write_text
from corebatch.record.provenance import provenance
from corebatch.rendering.sheet import Sheet, markdown_table, sheet_by

LEFT = ("source", "a whole run with")
RESULT, TEXT, CONFIG = "search.json", "search.md", "found.yaml"
NOTE = (
    "Losses are held-out nats a token by the metric of the search. Those that are measured are of one whole run each, "
    "with a seed and on rows that the search has not seen. A difference of single runs is an estimate: `corebatch "
    f"compare` over seeds tells whether it holds. `{CONFIG}` trains with the shares that were found."
)
WORDS = {"own": "the data's own shares", "equal": "equal shares", "found": "the shares that were found"}


def write_outputs(setup: Search, found: Found, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Writes all three, and returns what is in the JSON."""
    made = result(setup, found, lines)
    write_json(setup.folder / RESULT, made)
    write_text(setup.folder / TEXT, text(made))
    values = {key: value for key, value in plain(setup.values).items() if key not in ("search", "compare")}
    drawn = {"sampling": {"shares": made["shares"]["found"]}, "objective": "drawn"}
    values["coreset"] = {**(values.get("coreset") or {}), **drawn}
    values["output_dir"] = str(setup.folder / "run")
    write_text(setup.folder / CONFIG, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return made


def result(setup: Search, found: Found, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The best shares, and by how much a whole run with them is better than one with others: expected by the model, and
    measured by one run each on rows that the search has not seen. Losses are in nats a token."""
    settings = setup.settings
    shares = dict(zip(MEASURED, (setup.own, setup.equal, found.shares), strict=True))
    measured = {line["name"]: line for line in lines if line["kind"] == "measured" and line["status"] == "ok"}
    trials = list({line["number"]: line for line in lines if line["kind"] == "trial"}.values())
    values = {name: measured[name]["value"] if name in measured else None for name in MEASURED}
    gains, reached = {}, values["found"]
    for name, (expected, deviation) in zip(MEASURED, found.gains, strict=False):
        loss = values[name]
        gain = None if reached is None or loss is None else loss - reached
        gains[name] = {"expected": expected, "standard_deviation": deviation, "measured": gain}
    return plain(
        {
            "metric": settings.metric,
            "names": list(setup.names),
            "shares": {name: setup.named(each) for name, each in shares.items()},
            "expected_loss": found.loss,
            "measured_loss": values,
            "losses": {name: line["losses"] for name, line in measured.items()},
            "gains": gains,
            "steps": setup.steps,
            "trials": len(trials),
            "failed": sum(line["value"] is None for line in trials),
            "cost": sum(line["cost"] for line in trials),
            "seed": settings.seed,
            **provenance(),
        }
    )


def text(made: Mapping[str, Any]) -> str:
    """`search.md`."""
    failed = f"; {made['failed']} of them came to no loss." if made["failed"] else "."
    parts = (
        "# Shares of sources, searched for",
        f"{made['trials']} runs at the cost of {made['cost']:.3g} whole ones of {made['steps']} steps{failed}",
        *(markdown_table(sheet, LEFT) for sheet in tables(made)),
        NOTE,
    )
    return "\n\n".join(parts) + "\n"


def tables(made: Mapping[str, Any]) -> list[Sheet]:
    """Shares by source, and losses with what was gained."""
    shares = made["shares"]
    by_source = sheet_by(
        [("source", str), *((name, lambda s, name=name: f"{shares[name][s]:.3f}") for name in MEASURED)],
        list(shares["own"]),
    )
    losses = sheet_by(
        [
            ("a whole run with", lambda name: WORDS[name]),
            ("loss", lambda name: _number(made["measured_loss"][name])),
            ("gain of the found, measured", lambda name: _number(made["gains"].get(name, {}).get("measured"))),
            ("expected", lambda name: _expected(made["gains"].get(name))),
        ],
        list(MEASURED),
    )
    return [sheet for sheet in (by_source, losses) if sheet is not None]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _expected(gain: Mapping[str, float] | None) -> str:
    return "" if gain is None else f"{gain['expected']:.4f} ± {gain['standard_deviation']:.4f}"
