"""The sections of the page below its head: charts and tables."""

from __future__ import annotations

from corebatch.rendering import formats, markup
from corebatch.report import charts_cost as cost
from corebatch.report import charts_gradient as gradient
from corebatch.report import charts_loss as loss
from corebatch.report import charts_sources as sources
from corebatch.report import rows, series, words
from corebatch.report.record import Example, RunRecord
from corebatch.report.summary import Summary

_MOST_SOURCES = 300
_MOST_STEPS = 40


def sections(run: RunRecord, summary: Summary) -> list[str]:
    """The sections in their order; those without data are empty."""
    weights = ""
    if summary.weighted:
        weights = markup.figures((cost.largest_weight(run.steps), cost.effective_sample_size(run.steps)))
    time = (
        cost.time(summary),
        cost.time_over_steps(run.steps, summary),
        cost.memory(summary),
        cost.tokens(run.steps),
    )
    return [
        markup.section("Loss", markup.figures([loss.losses(run.steps)]), _losses(summary)),
        markup.section(
            "Held-out data", markup.figures((sources.answers(summary), loss.held_out(run))), _answers(summary)
        ),
        markup.section(
            "Sources",
            markup.figures((sources.shares(summary), sources.shares_over_time(run, summary)), aligned=True),
            markup.figures([sources.pool_and_chosen(run, summary)]),
            _sources(summary),
        ),
        markup.section("Examples", _examples(summary)),
        markup.section(
            "Gradient error",
            markup.figures((gradient.error(run.steps), gradient.direction(run.steps)), aligned=True),
            _gradient(summary),
        ),
        markup.section("Time, memory and tokens", markup.figures(time), _phases(summary), _pace(summary)),
        markup.section("Weights", weights),
        markup.section("Settings", _settings(run, summary)),
    ]


def _losses(summary: Summary) -> str:
    window = words.tenth(summary.loss_window)
    found = [(n, formats.number(x.first), formats.number(x.last)) for n, x in rows.losses(summary)]
    return markup.table(("nats per token", f"first {window}", f"last {window}"), found) if found else ""


def _answers(summary: Summary) -> str:
    found = [(name, *words.accuracy(before), *words.accuracy(after)) for name, before, after in rows.answers(summary)]
    header = ("source", "before: correct", "%", "interval, %", "after: correct", "%", "interval, %")
    return markup.details("All sources in numbers", markup.table(header, found)) if found else ""


def _sources(summary: Summary) -> str:
    shown, other = rows.largest(summary, _MOST_SOURCES)
    weighted = summary.weighted and any(s.weight_share is not None for s in shown)
    found = [
        (
            formats.shorten(s.name, 60),
            formats.count(s.examples),
            formats.count(s.drawn),
            formats.percent(s.drawn_share),
            formats.count(s.chosen),
            formats.percent(s.chosen_share),
            formats.times(s.ratio),
            *([formats.percent(s.weight_share)] if weighted else []),
            formats.count(s.kept_steps) if s.small or s.kept_steps else "",
        )
        for s in (*shown, *([other] if other else []))
    ]
    header = (
        "source",
        "in data set",
        "drawn",
        "share",
        "chosen",
        "share",
        "ratio of shares",
        *(["share by weight"] if weighted else []),
        "steps kept whole",
    )
    return markup.table(header, found) if found else ""


def _examples(summary: Summary) -> str:
    found = summary.examples
    if found is None:
        return ""
    low, high = found.draws
    times = f"{low:,} times" if low == high else f"{low:,} to {high:,} times"
    of = "" if found.in_data is None else f" of the {found.in_data:,} of the train set"
    told = f"{found.drawn:,} examples{of} were drawn, each {'once' if high == 1 else times}. "
    told += f"Never chosen: {rows.never_chosen(found)}."
    if found.steps < summary.steps:
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
        markup.samples(title, [(_about(e), e.text or "(its text was not stored)") for e in entries])
        for title, entries in zip(titles, (found.most, found.least), strict=True)
    ]
    below = f'<div class="blocks">{"".join(lists)}</div><p class="read">{markup.esc(how)}</p>' if any(lists) else ""
    return f'<p class="told">{markup.esc(told)}</p>{below}'


def _about(example: Example) -> str:
    weight = "" if example.weight is None else f", mean weight {example.weight:.2f}"
    times = f"chosen {example.chosen:,} of {example.drawn:,} times (at random {example.expected:.1f})"
    return f"{formats.shorten(example.source, 40)} · example {example.id:,} · {times}{weight}"


def _gradient(summary: Summary) -> str:
    found = summary.gradient
    if found is None:
        return ""
    lines = [
        (name, formats.number(d.error), formats.number(d.cosine), formats.number(d.length))
        for name, d in (("chosen, with their weights", found.chosen), ("as many random rows", found.random))
    ]
    ratio = ""
    if found.squared_ratio is not None:
        ratio = f" The squared error is {found.squared_ratio:.2f} of that of random rows."
    table = markup.table(
        ("rows of the small batch", "error", "cosine", "length"), lines, "Means over the steps measured."
    )
    return f'<p class="told">{markup.esc(rows.tracking(found) + ratio)}</p>{table}'


def _phases(summary: Summary) -> str:
    found = [
        (
            words.phase(phase.name),
            formats.milliseconds(phase.mean_ms),
            formats.milliseconds(phase.median_ms),
            formats.percent(phase.share),
            formats.compact(phase.peak_memory_mb),
        )
        for phase in summary.phases
    ]
    header = ("phase", "mean, ms", "median, ms", "share of time", "peak memory, MB")
    return markup.table(header, found) if found else ""


def _pace(summary: Summary) -> str:
    header = ("tokens", "number", "a second of the step", "a second of its phase", "padding, share of positions")
    found, caption = rows.pace(summary), "Its phase is score or train. Padding does not count as tokens."
    return markup.table(header, found, caption) if found else ""


def _settings(run: RunRecord, summary: Summary) -> str:
    info = run.info
    top = [*rows.totals(summary)]
    if "method_note" in info:
        top.append(("Note on the method", str(info["method_note"])))
    top.append(("corebatch", str(info.get("corebatch") or "unknown")))
    top.append(("Commit of corebatch", str(info.get("corebatch_commit") or "a released package, or unknown")))
    top.append(("Commit of the working directory", str(info.get("commit") or "unknown")))
    blocks = [
        f"<div><h3>{title}</h3>{markup.pairs(info[key]) if info.get(key) else '<p>unknown</p>'}</div>"
        for key, title in (
            ("coreset", "Selection (coreset)"),
            ("training", "Training arguments"),
            ("hardware", "Hardware"),
            ("versions", "Versions"),
        )
    ]
    grid = f'<div class="blocks">{"".join(blocks)}</div>'
    return "\n".join(
        (
            f"<div><h3>The run</h3>{markup.pairs(top)}</div>",
            grid,
            markup.details("Steps in numbers", _steps(run)),
        )
    )


def _steps(run: RunRecord) -> str:
    parts = series.bins(len(run.steps), _MOST_STEPS)
    last = [run.steps[part][-1] for part in parts]
    found = [
        (
            formats.count(s.step),
            formats.number(s.epoch, 2),
            formats.number(s.pool_loss),
            formats.number(s.chosen_loss),
            formats.number(s.train_loss),
            formats.count(s.tokens_scored),
            formats.count(s.tokens_trained),
            formats.number(s.weight_max, 2),
            formats.number(s.effective_sample_size, 1),
            formats.milliseconds(sum(s.ms.values()) if s.ms else None),
            formats.share(s.mfu),
        )
        for s in last
    ]
    header = (
        *("step", "epoch", "pool loss", "chosen loss", "trained loss", "tokens scored", "tokens trained"),
        *("largest weight", "effective sample", "ms", "MFU"),
    )
    each = "Every step." if len(last) == len(run.steps) else f"{len(last)} of {len(run.steps)} steps."
    return markup.table(header, found, each)
