"""What a summary holds in words, and the headline of a run in sentences."""

from __future__ import annotations

from collections.abc import Mapping

from corebatch.rendering.formats import NOTHING, clean, compact, count, duration, listing, percent, share
from corebatch.report.record import Accuracy
from corebatch.report.summary import LossSummary, Summary

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
