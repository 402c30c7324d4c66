"""What is trained of a mixture: how often its sources come, and how much they count, in every combination."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from corebatch.batch.online import OnlineObjective
from corebatch.config.settings import Settings
from corebatch.objective import Objective
from corebatch.rendering.sheet import table
from corebatch.sampling.shares import plan_by_name
from corebatch.text import say
from corebatch.trainer import CoresetConfig

MOST_SHOWN = 12
"""Sources in the table: the largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedSource:
    """What is trained of a source at one time of the run.

    Attributes:
        source: its name.
        rows: in the data.
        of_rows, of_drawn, of_tokens, of_objective: its share of the rows of the data, of the rows that are drawn, of
            their trained tokens, and of what the update is the mean of; each sums to 1 over sources.
        times: how often one of its rows comes in an epoch, on average.
    """

    source: str
    rows: int
    of_rows: float
    of_drawn: float
    of_tokens: float
    of_objective: float
    times: float


def trained_sources(
    coreset: CoresetConfig, rows: Mapping[str, int], tokens: Mapping[str, int], *, end: bool = False
) -> list[TrainedSource]:
    """What is trained of each source.

    Args:
        coreset: the settings; a source's rows are as heavy as they are without `weight_column`.
        rows: of each source in the data, by name, above 0.
        tokens: trained tokens of these rows.
        end: whether at the end of the run, where schedules have come to, instead of its start.

    Raises:
        ConfigError: a source that is not there, in the objective or in `sampling`; or one of the objective that has no
            trained token, or is never drawn.
    """
    plan = plan_by_name(coreset.sampling, rows, steps=1)
    names = [plan.names[source] for source in plan.sources]
    drawn = dict(zip(names, plan.shares(int(end)).tolist(), strict=True))
    drawn_tokens = _normalized({name: drawn[name] * tokens[name] / rows[name] for name in names})
    counted = _objective_shares(coreset.claimed.parts[-1 if end else 0], rows, tokens, drawn, drawn_tokens)
    epoch, total = plan.rows_of_epoch(), sum(rows.values())
    return [
        TrainedSource(
            source=name,
            rows=rows[name],
            of_rows=rows[name] / total,
            of_drawn=drawn[name],
            of_tokens=drawn_tokens[name],
            of_objective=counted[name],
            times=drawn[name] * epoch / rows[name],
        )
        for name in rows
    ]


def _objective_shares(
    objective: Objective,
    rows: Mapping[str, int],
    tokens: Mapping[str, int],
    drawn: Mapping[str, float],
    drawn_tokens: Mapping[str, float],
) -> dict[str, float]:
    """Each source's share of what the update is the mean of; in a mean over rows or tokens, of what is drawn."""
    if (online := OnlineObjective.of(objective, 0)) is not None:  # as it begins
        online.begin(dict(enumerate(tokens)), dict(enumerate(map(float, tokens.values()))))
        return online.shares
    found = objective.of_sources(tokens)
    if found is not None:
        return dict(found)
    if not objective.corrects:
        return dict(drawn_tokens)
    of = rows if objective.by_example else tokens
    return _normalized({name: float(of[name]) if drawn[name] else 0.0 for name in rows})


def _normalized(values: Mapping[str, float]) -> dict[str, float]:
    total = sum(values.values()) or 1.0
    return {name: value / total for name, value in values.items()}


def in_a_sentence(found: list[TrainedSource]) -> str:
    """Of the source whose rows count most unlike what they are, how much of what it is; '' where all count alike."""

    def spread(one: TrainedSource) -> float:
        shares = (one.of_drawn, one.of_tokens, one.of_objective)
        return max(shares) - min(shares)

    most = max(found, key=spread)
    if spread(most) < 0.005:
        return ""
    rows, tokens, counted = (f"{100 * share:.2g} %" for share in (most.of_drawn, most.of_tokens, most.of_objective))
    return f"{most.source}: {rows} of rows, {tokens} of loss tokens, {counted} of the objective."


def tell_trained(settings: Settings, counts: Mapping[str, Any], console: Console) -> None:
    """The table of what is trained, and in words what decides on it. `counts`: source -> its `rows` and
    `trained_tokens`. Raises ConfigError: as `trained_sources`."""
    coreset = settings.coreset
    rows = {name: one.rows for name, one in counts.items() if one.rows}
    if not rows:  # of the sample that was looked at all rows are left out
        return
    tokens = {name: counts[name].trained_tokens for name in rows}
    changes = coreset.claimed.schedule is not None or (coreset.sampling is not None and coreset.sampling.changes)
    for end in (False, True) if changes else (False,):
        found = trained_sources(coreset, rows, tokens, end=end)
        when = ", at the end of the run" if end else ", at the start of the run"
        when = when if changes or coreset.claimed.online is not None else ""
        console.print()
        shown = found if len(found) <= MOST_SHOWN else sorted(found, key=lambda one: -one.rows)[:MOST_SHOWN]
        console.print(table(f"What is trained{when} (shares in %)", [_line(one) for one in shown]))
        if len(found) > len(shown):
            say(console, f"and {len(found) - len(shown):,} more sources")
        if sentence := in_a_sentence(found):
            say(console, sentence)
    weighed = "" if coreset.weight_column is None else f", rows weighed by {coreset.weight_column} (not in the table)"
    say(console, f"The update is {coreset.claimed.in_words(len(rows))}{weighed}. {_how_drawn(coreset)}")
    for spec in settings.data.datasets:
        if spec.times != 1:
            drawn = ", drawn once: each epoch has the same" if spec.times % 1 else ""
            say(console, f"{spec.label}: its rows are in the data {spec.times:g} times{drawn}. That changes the data.")


def _line(one: TrainedSource) -> dict[str, Any]:
    shares = {"rows": one.of_rows, "rows drawn": one.of_drawn, "loss tokens": one.of_tokens}
    shares["objective"] = one.of_objective
    return {
        "source": one.source,
        "rows in data": one.rows,
        **{f"{key}, %": 100 * share for key, share in shares.items()},
        "times a row comes in an epoch": one.times,
    }


def _how_drawn(coreset: CoresetConfig) -> str:
    if coreset.sampling is not None and coreset.sampling.learnt is not None:
        return f"{coreset.sampling.in_words().capitalize()}; the table is that of a whole pass."
    if coreset.sampling is None:
        return "Rows come as often as they are in the data."
    if coreset.claimed.corrects:
        return "Rows come by coreset.sampling; weights undo in the update how often they come."
    return "Rows come by coreset.sampling, and count as they come."
