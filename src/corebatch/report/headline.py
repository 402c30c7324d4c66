"""What the user got of a run, in plain sentences: against its start, by source, against plain training, and what was
saved by which key. How it was done comes last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from corebatch.rendering.formats import clean, count, duration, listing, number, percent, shorten
from corebatch.report.record import Accuracy
from corebatch.report.rows import answers, span, tenth
from corebatch.report.rows import steps as so_many
from corebatch.report.summary import Summary

UNKNOWN = "Not known from one run; corebatch compare measures it."
_EACH = 4
"""So many sources are told one by one."""
_LEAST = 0.005
"""What saves a smaller share is not told."""

Change = tuple[str, float, float]
"""A source, and its value before and after."""


def headline(summary: Summary) -> list[tuple[str, str]]:
    """Sentences, each with what it is about: the first is what came of the run, about nothing else."""
    (title, told), right, held = _outcome(summary), _right(summary), _held_out(summary)
    found = [("", title), ("Measured", told)]
    if right and held:
        found.append(("Held-out loss", f"It {held[0]}. {held[1]}."))
    found.append(("By source", by_source(summary)))
    if summary.chooses:
        found += [("Against plain training", sentence) for sentence in summary.against or (UNKNOWN,)]
    found += saved(summary)
    found.append(("How", _how(summary)))
    return [(about, sentence) for about, sentence in found if sentence]


def _outcome(summary: Summary) -> tuple[str, str]:
    """What is nearest to what a model is for: held-out answers, else held-out loss, else the loss in training; and how
    it was measured."""
    if right := _right(summary):
        before, after = right
        apart = before.high < after.low or after.high < before.low
        counted = f"{count(before.correct)} of {count(before.total)} before, {count(after.correct)} of "
        counted += f"{count(after.total)} after training; their intervals {'do not ' * apart}overlap."
        change = _went(before.share or 0.0, after.share or 0.0, percent)
        return f"Right answers on held-out items {change}.", counted
    if held := _held_out(summary):
        return f"Held-out loss {held[0]}.", f"{held[1]}."
    for name, loss in (("Loss of the pool", summary.pool_loss), ("Training loss", summary.train_loss)):
        if summary.steps > 1 and loss.first is not None and loss.last is not None:
            window = tenth(summary.loss_window)
            return f"{name} {_nats(loss.first, loss.last)}.", f"Means of the first and the last {window}."
    return f"Trained for {so_many(summary.steps)}; nothing measured what came of it.", ""


def _right(summary: Summary) -> tuple[Accuracy, Accuracy] | None:
    """The answers to all held-out items before and after; None where either is not known."""
    before, after = (e.overall if e else None for e in (summary.before, summary.after))
    return (before, after) if before and after and before.total and after.total else None


def _held_out(summary: Summary) -> tuple[str, str] | None:
    """The loss over all held-out rows, and when it was measured; None where it was not measured twice."""
    found = next((each for each in summary.held_out if not each.name), None)
    if found is None or found.loss.first is None or found.loss.last is None:
        return None
    first = "Before training" if found.first_step == 0 else f"At step {count(found.first_step)}, not before training,"
    return _nats(found.loss.first, found.loss.last), f"{first} and at step {count(found.last_step)}"


def _nats(first: float, last: float) -> str:
    return f"{_went(first, last, number)} nats per token"


def _went(first: float, last: float, shown: Callable[[float], str]) -> str:
    ends = [shown(first), shown(last)]
    if ends[0] == ends[1]:
        return f"stayed at {ends[0]}"
    return f"{'rose' if last > first else 'fell'} from {ends[0]} to {ends[1]}"


def by_source(summary: Summary) -> str:
    """How the sources fared by what the headline is about: each of a few, else the most, the least and the others."""
    if _right(summary):
        right = [(name, *(each.share if each else None for each in both)) for name, *both in answers(summary)[1:]]
        return _fared(_known(right), percent, better=1)
    losses, what = [(each.name, each.loss) for each in summary.held_out if each.name], ""
    if not losses:
        losses = [(each.name, each.loss) for each in summary.sources if each.loss is not None]
        what = "Training loss of " * bool(_held_out(summary))
    told = _fared(_known((name, loss.first, loss.last) for name, loss in losses), number, better=-1)
    return f"{what}{told}" if told else ""


def _known(found: Iterable[Any]) -> list[Change]:
    return [each for each in found if None not in each]


def _fared(found: Sequence[Change], shown: Callable[[float], str], *, better: int) -> str:
    """`better`: 1 where larger values are better, -1 where smaller ones are."""

    def told(some: Sequence[Change], most: int = 3) -> str:
        ends = [f"{shorten(name, 40)} ({shown(a)} to {shown(b)})" for name, a, b in some[:most]]
        return ", ".join(ends) + f" and {count(len(some) - most)} more" * (len(some) > most)

    if len(found) < 2:
        return ""
    ranked = sorted(found, key=lambda each: -better * (each[2] - each[1]))
    if len(ranked) <= _EACH:
        return f"{told(ranked, _EACH)}."
    gained = sum(better * (b - a) > 0 for _, a, b in ranked)
    lost = [each for each in ranked[::-1] if better * (each[2] - each[1]) < 0]
    worst = f"worse in {told(lost)}" if lost else f"least in {told(ranked[-1:])}"
    return f"Better in {count(gained)} of {count(len(ranked))}: most in {told(ranked[:3])}; {worst}."


def saved(summary: Summary) -> list[tuple[str, str]]:
    """What of time and memory was saved, and the key that saved it, as the run counted them: (what, sentence). Nothing
    is told of what was not saved, but for choosing that cost more than it saved."""
    found, of = [("Time saved", _choosing(summary))], summary.positions
    cut = f"coreset.micro_batches ({clean(summary.cut)})"
    for what, sentence, now, plain in (
        ("Time saved", "training computed {} positions, padding included, instead of {}", of.trained, of.plain),
        ("Memory saved", "the activations of {} positions at once instead of {}", of.largest, of.largest_plain),
    ):
        if now and plain and now < (1 - _LEAST) * plain:
            told = sentence.format(count(now), count(plain))
            found.append((what, f"{cut}: {told}, {percent(1 - now / plain)} fewer."))
    if len(summary.passes) > 1 and summary.passes[-1] < summary.passes[0]:
        less = percent(1 - summary.passes[-1] / summary.passes[0])
        found.append(("Time saved", f"coreset.sampling: {less} fewer rows in the last pass, learnt by then."))
    return [(key, sentence) for key, sentence in found if sentence]


def _choosing(summary: Summary) -> str:
    """The time of choosing and training against that of training all that was drawn, at the run's own pace; '' where
    that cannot be told: a forward that was kept from scoring is missing in the time of training."""
    seconds = {phase.name: (phase.share or 0.0) * (summary.phase_seconds or 0.0) for phase in summary.phases}
    if summary.reuse_mb or summary.examples_drawn <= summary.examples_trained or not seconds.get("train"):
        return ""
    by, ratio = "examples", summary.examples_drawn / summary.examples_trained
    if set(summary.scoring) == {"full"} and summary.tokens_scored and summary.tokens_trained:
        by, ratio = "tokens", summary.tokens_scored / summary.tokens_trained
    took = sum(seconds.get(name, 0.0) for name in ("score", "exchange", "select", "repack", "train"))
    whole = seconds["train"] * ratio
    key = f"coreset.pool_factor ({clean(str(summary.coreset.get('pool_factor', 'unknown')))})"
    said = f"choosing and training took {duration(took)}; training the whole pool would have taken about "
    said += f"{duration(whole)} at the same pace, by their {by}."
    return f"{key}: {said}" if took < whole else f"{key}: none; {said}"


def _how(summary: Summary) -> str:
    """What was done at each step, and where its time went."""
    steps = "At the one step" if summary.steps == 1 else f"At each of {count(summary.steps)} steps"
    many = summary.chosen_size != (1, 1)
    chosen, pool = span(summary.chosen_size), span(summary.pool_size)
    if summary.examples_drawn == summary.examples_trained:
        how = f"all {pool} examples drawn were trained on (plain training, nothing was chosen)."
    else:
        how = f"{chosen} of {pool} examples {'were' if many else 'was'} chosen and trained on."
    kept = f"Small sources kept whole: {listing([clean(name) for name in summary.kept])}." if summary.kept else ""
    return " ".join(part for part in (f"{steps} {how}", _cost(summary), kept) if part)


def _cost(summary: Summary) -> str:
    shares = {phase.name: phase.share for phase in summary.phases}
    if summary.phase_seconds is None:
        return ""
    mean = duration(summary.phase_seconds / summary.steps)
    costs = _COSTS if summary.scores else _COSTS[1:]
    parts = [f"{word} {percent(shares[key])}" for key, word in costs if shares.get(key)]
    return f"A step took {mean} on average" + (f": {', '.join(parts)} of it." if parts else ".")


_COSTS = (("score", "scoring"), ("select", "selection"), ("train", "training"), ("track", "tracking gradients"))
