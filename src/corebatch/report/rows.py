"""What the table in the terminal and the tables of the page have in common: their rows."""

from __future__ import annotations

from corebatch.rendering import formats
from corebatch.report import words
from corebatch.report.record import Accuracy, Examples
from corebatch.report.summary import GradientSummary, LossSummary, SourceSummary, Summary


def totals(summary: Summary) -> list[tuple[str, str]]:
    """Names and values of what was counted, for the terminal and for the page."""
    scored, trained = formats.compact(summary.scored_per_second), formats.compact(summary.trained_per_second)
    rows = [
        ("Model", formats.clean(summary.model or "unknown")),
        ("Selection", words.method(summary)),
        ("Steps", f"{formats.count(summary.steps)} ({summary.first_step} to {summary.last_step})"),
        ("Examples", examples(summary)),
        ("Tokens", _pair(summary.tokens_scored, summary.tokens_trained, "scored")),
        ("Tokens per second", f"{scored} scored, {trained} trained"),
        ("Time in all phases", formats.duration(summary.phase_seconds)),
        ("Wall-clock time", formats.duration(summary.wall_seconds)),
    ]
    if padding := words.padding(summary):
        rows.append(("Padding", padding))
    if summary.mfu is not None:
        rows.append(("Utilisation (MFU)", words.utilisation(summary)))
    if summary.scoring:
        rows.append(("Pool scored", words.ways(summary.scoring)))
    if summary.reuse_mb:
        rows.append(("Kept from scoring", f"at most {formats.compact(summary.reuse_mb)} MB a step, used in training"))
    if summary.bytes_sent:
        rows.append(("Sent between ranks", sent(summary)))
        rows.append(("Balance of ranks", balance(summary)))
    if summary.weighted:
        weights = f"at most {formats.number(summary.weight_max, 2)}"
        size = f"effective sample size {formats.number(summary.effective_sample_size, 1)} on average"
        rows.append(("Weights", f"{weights}; {size}"))
    if summary.gradient is not None:
        rows.append(("Gradient error", gradient(summary.gradient)))
    if summary.examples is not None:
        rows.append(("Never chosen", never_chosen(summary.examples)))
    if summary.dropped_rows is not None:
        rows.append(("Rows dropped", f"{formats.count(summary.dropped_rows)} without a trained token"))
    return rows


def sent(summary: Summary) -> str:
    """How much travelled between ranks, in all, a step, and what for."""
    found = sorted(summary.bytes_sent.items(), key=lambda item: -item[1])
    total = sum(count for _, count in found)
    parts = ", ".join(f"{name} {formats.percent(count / total)}" for name, count in found if count)
    a_step = formats.compact(total / summary.steps / 2**10)
    return f"{formats.compact(total / 2**20)} MB, {a_step} KB a step ({parts})"


def balance(summary: Summary) -> str:
    """How many rows moved, and how unequal the ranks' work was."""
    moved, trained = formats.count(summary.rows_moved), formats.count(summary.examples_trained)
    more = formats.percent(summary.token_imbalance)
    return f"{moved} of {trained} chosen rows changed ranks; the busiest rank trained {more} more tokens than the mean"


def gradient(found: GradientSummary) -> str:
    """The error of the chosen rows' gradient beside that of random rows."""
    error, beside = formats.number(found.chosen.error, 2), formats.number(found.random.error, 2)
    return f"{error} of the large batch's length on average, random rows {beside} (on {words.steps(found.steps)})"


def tracking(found: GradientSummary) -> str:
    """What comparing gradients cost."""
    return (
        f"Measured at {words.steps(found.steps)}; {formats.milliseconds(found.mean_ms)} ms each, "
        f"{formats.share(found.share)} of the time of all phases."
    )


def never_chosen(found: Examples) -> str:
    """How many examples came and were passed over each time, and how many would be by a random choice."""
    chance = formats.compact(found.never_chosen_by_chance)
    return (
        f"{formats.count(found.never_chosen)} of {formats.count(found.drawn)} examples drawn (at random about {chance})"
    )


def pace(summary: Summary) -> list[tuple[str, str, str, str, str]]:
    """Tokens scored and trained: how many, a second of all phases, a second of their own phase, and padding."""
    s = summary
    known = (
        ("scored", s.tokens_scored, s.scored_per_second, s.scored_per_second_in_phase, s.padding_scored),
        ("trained", s.tokens_trained, s.trained_per_second, s.trained_per_second_in_phase, s.padding_trained),
    )
    return [
        (verb, formats.count(tokens), formats.compact(overall), formats.compact(inside), formats.percent(padding))
        for verb, tokens, overall, inside, padding in known
        if tokens is not None
    ]


def losses(summary: Summary) -> list[tuple[str, LossSummary]]:
    """The losses that are known, for the terminal and for the page."""
    known = (
        ("pool (all that was drawn)", summary.pool_loss),
        ("chosen, unweighted", summary.chosen_loss),
        ("trained (what was minimised)", summary.train_loss),
    )
    return [(name, loss) for name, loss in known if loss.first is not None or loss.last is not None]


def largest(summary: Summary, most: int) -> tuple[list[SourceSummary], SourceSummary | None]:
    """The largest sources, and the others added up (None when there are none)."""
    sources = list(summary.sources)
    if len(sources) <= most:
        return sources, None
    shown, rest = sources[: most - 1], sources[most - 1 :]
    drawn_share, chosen_share = (sum(getattr(s, key) for s in rest) for key in ("drawn_share", "chosen_share"))
    weights = [s.weight_share for s in rest if s.weight_share is not None]
    other = SourceSummary(
        name=f"{len(rest):,} {words.OTHER}",
        drawn=sum(s.drawn for s in rest),
        chosen=sum(s.chosen for s in rest),
        drawn_share=drawn_share,
        chosen_share=chosen_share,
        ratio=chosen_share / drawn_share if drawn_share else None,
        kept_steps=0,
        weight_share=sum(weights) if weights else None,
    )
    return shown, other


def answers(summary: Summary) -> list[tuple[str, Accuracy | None, Accuracy | None]]:
    """Held-out accuracy before and after: over all first, then by source."""
    before, after = (e.per_source if e else {} for e in (summary.before, summary.after))
    found = [(name, before.get(name), after.get(name)) for name in sorted({*before, *after})]
    overall = [e.overall if e else None for e in (summary.before, summary.after)]
    return [("all", overall[0], overall[1]), *found] if any(overall) else found


def examples(summary: Summary) -> str:
    """How many examples were drawn and trained on."""
    return _pair(summary.examples_drawn, summary.examples_trained, "drawn")


def _pair(first: int | None, trained: int | None, verb: str) -> str:
    return f"{formats.count(first)} {verb}, {formats.count(trained)} trained"
