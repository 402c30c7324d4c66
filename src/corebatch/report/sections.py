"""What the page shows below its head: charts, tables and sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from corebatch.rendering import formats
from corebatch.rendering.sheet import Sheet, flat, sheet_by, sheet_of
from corebatch.rendering.svg import Chart
from corebatch.report import charts_cost as cost
from corebatch.report import charts_sources as sources
from corebatch.report import lines, rows, series
from corebatch.report.record import Example, Examples, RunRecord, Turn
from corebatch.report.summary import PhaseSummary, SourceSummary, Summary
from corebatch.step_line import StepLine

_MOST_SOURCES = 300
_MOST_STEPS = 40
_NO_TEXT = "(its text was not stored)"
_OF_CHOICES = ("pool loss", "chosen loss", "tokens scored", "largest weight", "effective sample")


def contents(run: RunRecord, summary: Summary) -> dict[str, Any]:
    """What the template of the page names; parts without data are None or empty."""
    return {
        "charts": _charts(run, summary),
        "tables": {
            "losses": _losses(summary),
            "answers": _answers(summary),
            "sources": _sources(summary),
            "gradient": _gradient(summary),
            "phases": _phases(summary),
            "pace": _pace(summary),
            "steps": _steps(run, chooses=summary.chooses),
        },
        "examples": None if summary.examples is None else _examples(summary.examples, summary.steps),
        "gradient": _told(summary),
        "commands": run.commands,
        "run": flat([*rows.totals(summary), *_origin(run)]),
        "settings": [
            (title, flat(run.info.get(key) or {}))
            for key, title in (
                ("coreset", "Selection (coreset)"),
                ("training", "Training arguments"),
                ("hardware", "Hardware"),
                ("versions", "Versions"),
            )
        ],
    }


def _charts(run: RunRecord, summary: Summary) -> dict[str, tuple[Chart | None, ...]]:
    steps = run.steps
    weights = (cost.largest_weight(steps), cost.effective_sample_size(steps)) if summary.weighted else ()
    return {
        "loss": (lines.losses(steps), lines.losses_of_sources(steps, [s.name for s in summary.sources])),
        "held_out": (sources.answers(summary), lines.held_out(run)),
        "shares": (sources.shares(summary), sources.shares_over_time(run, summary)) if summary.chooses else (),
        "pool": (
            sources.pool_and_chosen(run, summary) if summary.chooses else None,
            lines.objective_shares(steps, [s.name for s in summary.sources]),
        ),
        "gradient": (lines.gradient_error(steps), lines.gradient_direction(steps)),
        "noise": (lines.noise_scale(steps),),
        "time": (cost.time(summary), cost.time_over_steps(steps, summary), cost.memory(summary), cost.tokens(steps)),
        "weights": weights,
    }


def _origin(run: RunRecord) -> list[tuple[str, str]]:
    info = run.info
    note = [("Note on the method", str(info["method_note"]))] if "method_note" in info else []
    scored = [("Scored", str(info["scored"]))] if "scored" in info else []
    return [
        *scored,
        *note,
        ("corebatch", str(info.get("corebatch") or "unknown")),
        ("Commit of corebatch", str(info.get("corebatch_commit") or "a released package, or unknown")),
        ("Commit of the working directory", str(info.get("commit") or "unknown")),
    ]


def _losses(summary: Summary) -> Sheet | None:
    window = rows.tenth(summary.loss_window)
    found = [(n, formats.number(x.first), formats.number(x.last)) for n, x in rows.losses(summary)]
    return sheet_of(("nats per token", f"first {window}", f"last {window}"), found)


def _answers(summary: Summary) -> Sheet | None:
    found = [(name, *rows.accuracy(before), *rows.accuracy(after)) for name, before, after in rows.answers(summary)]
    header = ("source", "before: correct", "%", "interval, %", "after: correct", "%", "interval, %")
    return sheet_of(header, found)


def _sources(summary: Summary) -> Sheet | None:
    shown, other = rows.largest(summary, _MOST_SOURCES)
    weighted = summary.weighted and any(s.weight_share is not None for s in shown)
    columns: list[tuple[str, Callable[[SourceSummary], str]]] = [
        ("source", lambda s: formats.shorten(s.name, 60)),
        ("in data set", lambda s: formats.count(s.examples)),
        ("drawn", lambda s: formats.count(s.drawn)),
        ("share", lambda s: formats.percent(s.drawn_share)),
        *(_CHOSEN if summary.chooses else ()),
        *([("share by weight", lambda s: formats.percent(s.weight_share))] if weighted else []),
        *([("steps kept whole", _kept)] if any(s.small or s.kept_steps for s in shown) else []),
    ]
    return sheet_by(columns, (*shown, *([other] if other else [])))


def _kept(source: SourceSummary) -> str:
    return formats.count(source.kept_steps) if source.small or source.kept_steps else ""


_CHOSEN: tuple[tuple[str, Callable[[SourceSummary], str]], ...] = (
    ("chosen", lambda s: formats.count(s.chosen)),
    ("share", lambda s: formats.percent(s.chosen_share)),
    ("ratio of shares", lambda s: formats.times(s.ratio)),
)


def _examples(found: Examples, steps: int) -> dict[str, Any]:
    low, high = found.draws
    times = f"{low:,} times" if low == high else f"{low:,} to {high:,} times"
    of = "" if found.in_data is None else f" of the {found.in_data:,} of the train set"
    told = f"{found.drawn:,} examples{of} were drawn, each {'once' if high == 1 else times}. "
    told += f"Never chosen: {rows.never_chosen(found)}."
    if found.steps < steps:
        told += f" Counted over the last {found.steps:,} steps alone: earlier ones have no record of examples."
    titles = ("Chosen most often", "Chosen least often")
    how = (
        "By how many standard deviations the number of choices is away from that of a random choice of as many rows; "
        "of equals, a smaller weight comes first among the most chosen."
    )
    if found.ranked_by == "weight":
        titles = ("Chosen with the smallest weights", "Chosen with the largest weights")
        how = (
            "No example came twice, so none was chosen often. A weight is the inverse of the probability with which an "
            "example was chosen: a small one was a likely choice."
        )
    lists = [
        (title, [(_about(e), e.turns or (Turn(text=e.text or _NO_TEXT, trained=None),)) for e in entries])
        for title, entries in zip(titles, (found.most, found.least), strict=True)
        if entries
    ]
    if any(turn.trained for each in (*found.most, *found.least) for turn in each.turns):
        how += " What is trained of an example is marked by a green bar."
    return {"told": told, "how": how, "lists": lists}


def _about(example: Example) -> str:
    weight = "" if example.weight is None else f", mean weight {example.weight:.2f}"
    times = f"chosen {example.chosen:,} of {example.drawn:,} times (at random {example.expected:.1f})"
    return f"{formats.shorten(example.source, 40)} · example {example.id:,} · {times}{weight}"


def _told(summary: Summary) -> str:
    """What comparing gradients cost, and what it showed in a number."""
    found = summary.gradient
    if found is None:
        return ""
    if found.squared_ratio is None:
        return rows.tracking(found)
    return f"{rows.tracking(found)} The squared error is {found.squared_ratio:.2f} of that of random rows."


def _gradient(summary: Summary) -> Sheet | None:
    if summary.gradient is None:
        return None
    named = (("chosen, with their weights", summary.gradient.chosen), ("as many random rows", summary.gradient.random))
    found = [
        (name, *(formats.number(value) for value in (each.error, each.cosine, each.length))) for name, each in named
    ]
    return sheet_of(("rows of the small batch", "error", "cosine", "length"), found, "Means over the steps measured.")


def _phases(summary: Summary) -> Sheet | None:
    columns: list[tuple[str, Callable[[PhaseSummary], str]]] = [
        ("phase", lambda phase: rows.phase(phase.name)),
        ("mean, ms", lambda phase: formats.milliseconds(phase.mean_ms)),
        ("median, ms", lambda phase: formats.milliseconds(phase.median_ms)),
        ("share of time", lambda phase: formats.percent(phase.share)),
        ("peak memory, MB", lambda phase: formats.compact(phase.peak_memory_mb)),
    ]
    return sheet_by(columns, summary.phases)


def _pace(summary: Summary) -> Sheet | None:
    header = ("tokens", "number", "a second of the step", "a second of its phase", "padding, share of positions")
    found, caption = rows.pace(summary), "Its phase is score or train. Padding does not count as tokens."
    return sheet_of(header, found, caption)


def _steps(run: RunRecord, *, chooses: bool) -> Sheet | None:
    parts = series.bins(len(run.steps), _MOST_STEPS)
    last = [run.steps[part][-1] for part in parts]
    columns: list[tuple[str, Callable[[StepLine], str]]] = [
        ("step", lambda s: formats.count(s.step)),
        ("epoch", lambda s: formats.number(s.epoch, 2)),
        ("pool loss", lambda s: formats.number(s.pool_loss)),
        ("chosen loss", lambda s: formats.number(s.chosen_loss)),
        ("trained loss", lambda s: formats.number(s.train_loss)),
        ("tokens scored", lambda s: formats.count(s.tokens_scored)),
        ("tokens trained", lambda s: formats.count(s.tokens_trained)),
        ("largest weight", lambda s: formats.number(s.weight_max, 2)),
        ("effective sample", lambda s: formats.number(s.effective_sample_size, 1)),
        ("ms", lambda s: formats.milliseconds(sum(s.ms.values()) if s.ms else None)),
        ("MFU", lambda s: formats.share(s.mfu)),
    ]
    if not chooses:
        columns = [column for column in columns if column[0] not in _OF_CHOICES]
    each = "Every step." if len(last) == len(run.steps) else f"{len(last)} of {len(run.steps)} steps."
    return sheet_by(columns, last, each)
