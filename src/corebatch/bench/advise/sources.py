"""How unlike the sources of this run are: rows, trained tokens, loss, noise of the gradient; and what drawing some of
them more often is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from corebatch.bench.advise.finding import TO_LOSS, Finding
from corebatch.bench.advise.probe import Probe
from corebatch.bench.advise.row_gradients import RowGradients, epochs_of, row_gradients
from corebatch.bench.advise.worth import Arrival, gain, plain, residuals, worth
from corebatch.bench.runs.held_out_means import at_the_end, mean_of
from corebatch.errors import CorebatchError, InputError

LEVER = "shares of the sources"
OFTENER = 4.0
"""Times as often as in the data, at most, that a source is drawn on advice."""
EPOCHS = 4.0
"""Up to so many passes over a row, repetition costs little (Muennighoff et al. 2023, arXiv 2305.16264)."""
WAYS = ("drawn equally often", "drawn by their spread")
HOPED = 4.0  # rows of a source by which its own spread counts as much as that of all


def measure(probe: Probe) -> list[Finding]:
    """What the sources are, and where rows come as they are in the data and are all trained, the worth of other shares:
    all sources equally often, and in proportion to their spread."""
    rows: RowGradients | None = None
    reason = ""
    try:
        rows = row_gradients(probe)
    except CorebatchError as error:
        reason = str(error)
    found = [_told(probe, rows, reason)]
    if len(_names(probe)) < 2:
        return found
    coreset = probe.settings.coreset
    try:
        if rows is None:
            raise InputError(reason)
        for name in ("sampling", "by_length", "replay"):
            if getattr(coreset, name) is not None:
                raise InputError(f"coreset.{name} decides which rows come")
        if coreset.pool_factor > 1:
            raise InputError("with coreset.pool_factor above 1 rows are chosen out of what is drawn: see there")
        if not coreset.claimed.corrects:
            raise InputError("with the objective drawn other shares are another aim")
        return [*found, *gain([_worth(probe, rows, name) for name in WAYS], "too_often")]
    except CorebatchError as error:
        return [*found, Finding(lever=LEVER, of=TO_LOSS, unmeasured=str(error))]


def _names(probe: Probe) -> list[str]:
    return [name for name, one in probe.mixture.counts.items() if one.trained_tokens]


def _told(probe: Probe, rows: RowGradients | None, reason: str) -> Finding:
    """The finding that sets no key: the table of the sources, and the mean that the run will be judged by."""
    counts = {name: probe.mixture.counts[name] for name in _names(probe)}
    total, tokens = (sum(getattr(one, what) for one in counts.values()) for what in ("rows", "trained_tokens"))
    table: dict[str, dict[str, Any]] = {
        name: {"rows": one.rows / total, "tokens": one.trained_tokens / tokens} for name, one in counts.items()
    }
    if rows is not None:
        noise = residuals(rows.gram_PP, rows.sizes)
        for number in rows.population.sources.unique().tolist():
            own = rows.population.sources == number
            table[rows.population.table.names[number]] |= {
                "loss": float(rows.losses[own] @ rows.population.tokens[own].double())
                / int(rows.population.tokens[own].sum()),
                "noise": float(noise[own].sum() / noise.sum()),
                "rows_measured": int(own.sum()),
            }
    judged = mean_of(at_the_end(probe.settings.coreset.claimed))
    most = max(table, key=lambda name: table[name]["tokens"])
    least = min(table, key=lambda name: table[name]["tokens"])
    words = f"the run minimises the mean over {_OVER[judged]}"
    if len(table) > 1:
        words += f"; {_source(most, table[most])}, {_source(least, table[least])}"
        if judged == "token" and table[most]["tokens"] > 2 / len(table):
            words += "; if every source is to count alike, coreset.objective: sources says so"
    words += f"; loss and noise by source are not known: {reason}" * bool(reason)
    return Finding(lever="sources", why=words, numbers={"judged_by": judged, "sources": table})


_OVER = {"token": "trained tokens", "example": "examples", "source": "sources", "claimed": "sources by their shares"}


def _source(name: str, one: Mapping[str, float]) -> str:
    noise = f", {100 * one['noise']:.2g} % of the noise" if "noise" in one else ""
    return f"{name} has {100 * one['rows']:.2g} % of the rows and {100 * one['tokens']:.2g} % of the tokens{noise}"


def _worth(probe: Probe, rows: RowGradients, name: str) -> Finding:
    """Of drawing the sources in other shares than their rows', with weights that undo it."""
    counts = {name: probe.mixture.counts[name].rows for name in _names(probe)}
    total = sum(counts.values())
    often = {source: total / len(counts) / count for source, count in counts.items()}
    arm: dict[str, Any] = {"temperature": 0}
    if name == "drawn by their spread":
        often = _by_spread(rows, counts)
        arm = {"shares": {source: round(often[source] * count / total, 4) for source, count in counts.items()}}
    numbers = rows.population.table.names
    rates = torch.tensor([often[numbers[number]] for number in rows.population.sources.tolist()], dtype=torch.float64)
    lengths = rows.population.lengths.double()
    cost = float((rates * lengths).sum() / rates.sum() / lengths.mean())
    way = Arrival(cost=cost, rates=rates / rates.mean())
    found = worth(way, plain(1.0, len(rates)), rows, probe.batch_size)
    most = max(often, key=lambda source: often[source])
    passes = often[most] * epochs_of(probe)
    return Finding(
        lever=f"{LEVER}: {name}", arm={"coreset.sampling": arm}, factor=found.factor, low=found.low, high=found.high,
        of=TO_LOSS, why=f"{found.why(probe.batch_size)}; a step costs {cost:.2f} times as much; a row of {most} comes "
        f"{passes:.2g} times, {often[most]:.2g} times as often as in the data",
        numbers={
            **found.numbers(probe.batch_size), "cost": cost, "passes": passes,
            # repeated rows teach less than others, which no gradient of today tells
            "too_often": 1.0 if often[most] > OFTENER or passes > max(EPOCHS, epochs_of(probe)) else 0.0,
        },
    )  # fmt: skip


def _by_spread(rows: RowGradients, counts: Mapping[str, int]) -> dict[str, float]:
    """How often each source is drawn, in proportion to the root of what a row of it adds to the variance over what it
    costs (Neyman 1934), at most OFTENER times; relative to its rows."""
    squares, lengths = residuals(rows.gram_PP, rows.sizes), rows.population.lengths.double()
    sources, names = rows.population.sources, rows.population.table.names

    def mean(values: Tensor, source: str) -> float:
        own = values[torch.tensor([names[number] == source for number in sources.tolist()])]
        return float((own.sum() + HOPED * values.mean()) / (len(own) + HOPED))

    ideal = {source: (mean(squares, source) / mean(lengths, source)) ** 0.5 for source in counts}
    total, often = sum(counts.values()), dict(ideal)
    for _ in range(20):  # what is cut off goes to the others
        mean_rate = sum(often[source] * count for source, count in counts.items()) / total
        often = {source: min(OFTENER, rate / mean_rate) for source, rate in often.items()}
    return often
