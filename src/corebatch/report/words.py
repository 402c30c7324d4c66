"""Numbers and names as a reader wants them, and the headline of a run in sentences."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from rich.cells import cell_len

from corebatch.report.record import Accuracy
from corebatch.report.summary import LossSummary, Summary

NOTHING = "\u2013"  # an en dash where a number is unknown
OTHER = "other sources"


def clean(text: str) -> str:
    """The text on one line, without control characters, direction overrides or lone surrogates."""
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in text)


def shorten(text: str, cells: int) -> str:
    """The cleaned text, cut to a width in terminal cells (a CJK character takes two)."""
    text = clean(text)
    if cell_len(text) <= cells:
        return text
    while cell_len(text) > cells - 1:
        text = text[:-1]
    return text + "…"


def count(value: int | None) -> str:
    """12345 -> 12,345."""
    return NOTHING if value is None else f"{value:,}"


def compact(value: float | None) -> str:
    """1234567 -> 1.23 M; three digits that count."""
    if value is None:
        return NOTHING
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            scale = 1e3 if unit == " k" else size
            return f"{value / scale:.3g}{unit}" if abs(value) < 999.5 * scale else f"{value / scale:,.0f}{unit}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many places after the point."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def percent(share: float | None) -> str:
    """0.314 -> 31.4 %."""
    return NOTHING if share is None else f"{100 * share:.1f} %"


def times(ratio: float | None) -> str:
    """1.5 -> 1.50 ×."""
    return NOTHING if ratio is None else f"{ratio:.2f} \u00d7"


def share(value: float | None) -> str:
    """As `percent`, with three digits that count where it is below one per cent: 0.00123 -> 0.123 %."""
    if value is None or not 0 < abs(value) < 0.01:
        return percent(value)
    return f"{100 * value:.3g} %"


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


def milliseconds(value: float | None) -> str:
    """Milliseconds: whole above 100, one place below, two below 1."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def duration(seconds: float | None) -> str:
    """4000 -> 1 h 07 min."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


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


def listing(names: Sequence[str], most: int = 6) -> str:
    """a, b and c; or a, b and 7 more."""
    shown = [shorten(name, 40) for name in names]
    if len(shown) > most:
        shown = [*shown[: most - 1], f"{count(len(shown) - most + 1)} more"]
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def method(summary: Summary) -> str:
    """Selector and scorer: balanced on last_layer; 'unknown' without settings."""
    selector, scorer = (summary.coreset.get(key) for key in ("selector", "scorer"))
    if selector is None:
        return "unknown"
    return clean(str(selector)) if scorer is None else f"{clean(str(selector))} on {clean(str(scorer))}"


def headline(summary: Summary) -> list[str]:
    """What was done and what came of it, in a few plain sentences."""
    steps = "At the one step" if summary.steps == 1 else f"At each of {count(summary.steps)} steps"
    many = summary.chosen_size != (1, 1)
    chosen, pool = span(summary.chosen_size), span(summary.pool_size)
    if summary.examples_drawn == summary.examples_trained:
        how = f"all {pool} examples drawn were trained on (plain training, nothing was chosen)."
    else:
        how = f"{chosen} of {pool} examples {'were' if many else 'was'} chosen and trained on."
    sentences = [f"{steps} {how}", _cost(summary)]
    if summary.kept:
        sentences.append(f"Small sources kept whole: {listing(summary.kept)}.")
    losses = (
        _loss("Loss of the pool", summary.pool_loss, summary),
        _loss("Training loss", summary.train_loss, summary),
    )
    sentences.append(losses[0] or losses[1])
    before, after = (e.overall if e else None for e in (summary.before, summary.after))
    if before and after and before.total and after.total:
        sentences.append(
            f"Exact answers on held-out items: {before.correct} of {before.total} ({percent(before.share)}) "
            f"before, {after.correct} of {after.total} ({percent(after.share)}) after."
        )
    return [sentence for sentence in sentences if sentence]


def _loss(what: str, loss: LossSummary, summary: Summary) -> str:
    if loss.first is None or loss.last is None or summary.steps == 1:
        return ""
    went = "fell" if loss.last < loss.first else "rose" if loss.last > loss.first else "stayed"
    window = tenth(summary.loss_window)
    ends = f"from {loss.first:.3f} to {loss.last:.3f} nats per token"
    return f"{what} {went} {ends} (means of the first and the last {window})."


def _cost(summary: Summary) -> str:
    shares = {phase.name: phase.share for phase in summary.phases}
    if summary.phase_seconds is None:
        return ""
    mean = duration(summary.phase_seconds / summary.steps)
    parts = [f"{word} {percent(shares[key])}" for key, word in _COSTS if shares.get(key)]
    return f"A step took {mean} on average" + (f": {', '.join(parts)} of it." if parts else ".")


_PHASES = {"exchange": "communication", "track": "tracking"}
_COSTS = (("score", "scoring"), ("select", "selection"), ("train", "training"), ("track", "tracking gradients"))
