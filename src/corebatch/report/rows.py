"""What a summary holds in words and rows, the same for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping

from corebatch.rendering import formats
from corebatch.rendering.formats import NOTHING, clean, compact, count, listing, percent, share
from corebatch.report.record import Accuracy, Examples
from corebatch.report.summary import GradientSummary, LossSummary, SourceSummary, Summary

LOSSES = 20
"""Sources, the largest, whose losses are shown."""


def totals(summary: Summary) -> list[tuple[str, str]]:
    """Names and values of what was counted, for the terminal and for the page."""
    rows = [
        ("Model", formats.clean(summary.model or "unknown")),
        ("Selection", method(summary)),
        *([("Trained for", formats.clean(summary.claimed))] if summary.claimed else []),
        ("Steps", f"{formats.count(summary.steps)} ({summary.first_step} to {summary.last_step})"),
        ("Examples", examples(summary)),
        *_tokens(summary),
        ("Time in all phases", formats.duration(summary.phase_seconds)),
        ("Wall-clock time", formats.duration(summary.wall_seconds)),
    ]
    if empty := padding(summary):
        rows.append(("Padding", empty))
    if cut := micro_batches(summary):
        rows.append(("Micro-batches", cut))
    if summary.mfu is not None:
        rows.append(("Utilisation (MFU)", utilisation(summary)))
    if summary.scoring and summary.chooses:
        rows.append(("Pool scored", ways(summary.scoring)))
    if summary.reuse_mb:
        rows.append(("Kept from scoring", f"at most {formats.compact(summary.reuse_mb)} MB a step, used in training"))
    if summary.bytes_sent:
        rows.append(("Sent between ranks", sent(summary)))
        rows.append(("Balance of ranks", balance(summary)))
    if summary.weighted:
        weights = f"at most {formats.number(summary.weight_max, 2)}"
        size = f"effective sample size {formats.number(summary.effective_sample_size, 1)} on average"
        rows.append(("Weights", f"{weights}; {size}"))
    if summary.passes:
        shown = ", ".join(formats.count(rows) for rows in summary.passes[:12])
        rows.append(("Rows of each pass", f"{shown}{' and more passes' * (len(summary.passes) > 12)}"))
    if summary.carried is not None:
        rows.append(("Errors carried", f"{formats.number(summary.carried, 2)} mean norms of a row at the end"))
    if summary.gradient is not None:
        rows.append(("Gradient error", gradient(summary.gradient)))
    if summary.examples is not None:
        rows.append(("Never chosen", never_chosen(summary.examples)))
    if summary.dropped_rows is not None:
        rows.append(("Rows dropped", f"{formats.count(summary.dropped_rows)} without a trained token"))
    return rows


def _tokens(summary: Summary) -> list[tuple[str, str]]:
    a_second = f"{formats.compact(summary.trained_per_second)} trained"
    if not summary.scores:
        return [("Tokens", f"{formats.count(summary.tokens_trained)} trained"), ("Tokens per second", a_second)]
    scored = formats.compact(summary.scored_per_second)
    both = _pair(summary.tokens_scored, summary.tokens_trained, "scored")
    return [("Tokens", both), ("Tokens per second", f"{scored} scored, {a_second}")]


def micro_batches(summary: Summary) -> str:
    """Positions a token and of the largest micro-batch, beside those without regrouping, and the peak of memory; '' of
    an older run."""
    s, of = summary, summary.positions
    if not (of.trained and of.plain and s.tokens_trained):
        return ""
    each, plain = (formats.number(positions / s.tokens_trained, 2) for positions in (of.trained, of.plain))
    found = f"{each} positions a token ({plain} as drawn), the largest {formats.count(of.largest)} positions"
    found += f" ({formats.count(of.largest_plain)} as drawn)"
    peak = next((phase.peak_memory_mb for phase in s.phases if phase.name == "train"), None)
    return found if peak is None else f"{found}, {formats.compact(peak)} MB at the most in training"


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
    rows = "chosen rows" if summary.chooses else "rows"
    return f"{moved} of {trained} {rows} changed ranks; the busiest rank trained {more} more tokens than the mean"


def gradient(found: GradientSummary) -> str:
    """The error of the chosen rows' gradient beside that of random rows."""
    error, beside = formats.number(found.chosen.error, 2), formats.number(found.random.error, 2)
    return f"{error} of the large batch's length on average, random rows {beside} (on {steps(found.steps)})"


def tracking(found: GradientSummary) -> str:
    """What comparing gradients cost."""
    return (
        f"Measured at {steps(found.steps)}; {formats.milliseconds(found.mean_ms)} ms each, "
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
    scored = s.tokens_scored if s.scores else None
    known = (
        ("scored", scored, s.scored_per_second, s.scored_per_second_in_phase, s.padding_scored),
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
    by_source = [(f"trained, {clean(s.name)}", s.loss) for s in summary.sources[:LOSSES] if s.loss is not None]
    return [*((name, loss) for name, loss in known if loss.first is not None or loss.last is not None), *by_source]


def largest(summary: Summary, most: int) -> tuple[list[SourceSummary], SourceSummary | None]:
    """The largest sources, and the others added up (None when there are none)."""
    sources = list(summary.sources)
    if len(sources) <= most:
        return sources, None
    shown, rest = sources[: most - 1], sources[most - 1 :]
    drawn_share, chosen_share = (sum(getattr(s, key) for s in rest) for key in ("drawn_share", "chosen_share"))
    weights = [s.weight_share for s in rest if s.weight_share is not None]
    other = SourceSummary(
        name=f"{len(rest):,} {OTHER}",
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


UNSCORED = "nothing: rows are drawn"
"""How what is scored begins in words, where neither scorer nor selector plays a part."""

OTHER = "other sources"


def phase(name: str) -> str:
    """The name of a phase as people read it."""
    return _PHASES.get(name, clean(name))


def utilisation(summary: Summary) -> str:
    """41.2 % of 989 TFLOP/s a device (data sheet)."""
    if summary.mfu is None or summary.peak_flops is None:
        return share(summary.mfu)
    how = "data sheet" if summary.peak_how == "table" else clean(summary.peak_how or "unknown how")
    return f"{share(summary.mfu)} of {compact(summary.peak_flops)}FLOP/s a device ({how})"


def padding(summary: Summary) -> str:
    """25.0 % of positions scored, 20.0 % of positions trained; what is unknown is left out."""
    known = (("scored", summary.padding_scored), ("trained", summary.padding_trained))
    return ", ".join(f"{percent(value)} of positions {verb}" for verb, value in known if value is not None)


def ways(steps: Mapping[str, int]) -> str:
    """How the pool was scored: full (1 step), proxy (9 steps)."""
    counted = sorted(steps.items(), key=lambda item: (-item[1], item[0]))
    return listing([f"{name} ({count(many)} {'step' if many == 1 else 'steps'})" for name, many in counted])


def steps(value: int) -> str:
    """1 step, 12 steps."""
    return f"{count(value)} {'step' if value == 1 else 'steps'}"


def span(ends: tuple[int, int]) -> str:
    """(64, 64) -> 64; (60, 64) -> 60 to 64."""
    low, high = ends
    return count(low) if low == high else f"{count(low)} to {count(high)}"


def tenth(window: int) -> str:
    """What follows 'first' or 'last': step, or 12 steps."""
    return "step" if window == 1 else f"{count(window)} steps"


def accuracy(value: Accuracy | None) -> tuple[str, str, str]:
    """Correct of total, per cent, and the interval in per cent: 12/40, 30.0, 18.1–45.4."""
    if value is None or value.share is None:
        return NOTHING, "", ""
    ends = f"{100 * value.low:.1f}\u2013{100 * value.high:.1f}"
    return f"{count(value.correct)}/{count(value.total)}", f"{100 * value.share:.1f}", ends


def method(summary: Summary) -> str:
    """Selector and scorer: balanced on last_layer, error feedback 0.99; 'unknown' without settings. Where rows have no
    features, how they are drawn."""
    if not summary.chooses:
        return f"none: every row is trained, in micro-batches by {clean(summary.cut)}"
    if summary.scored is not None and summary.scored.startswith(UNSCORED):
        return clean(summary.scored.removeprefix("nothing: "))
    selector, scorer = (summary.coreset.get(key) for key in ("selector", "scorer"))
    if selector is None:
        return "unknown"
    rho = summary.coreset.get("feedback")
    follows = "" if rho is None else f", error feedback {clean(str(rho))}"
    return clean(str(selector)) + ("" if scorer is None else f" on {clean(str(scorer))}") + follows


_PHASES = {"exchange": "communication", "track": "tracking"}
