"""Adds up a run: totals, sources, phases, losses, weights."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from operator import mul
from typing import Any

from corebatch.report.fields import record
from corebatch.report.record import PHASES, PeakFlops, RunRecord
from corebatch.report.summary import (
    CutSummary,
    GradientSummary,
    HeldOutSummary,
    LossSummary,
    PhaseSummary,
    SourceSummary,
    Summary,
)
from corebatch.step_line import Distance, StepLine


def summarise(run: RunRecord) -> Summary:
    """Add up a run. All means over steps are plain means, each step counting once."""
    steps = run.steps
    seconds = sum(sum(step.ms.values()) for step in steps) / 1000
    spent = {name: sum(step.ms.get(name, 0.0) for step in steps) / 1000 for name in ("score", "train")}
    scored, trained = _total(s.tokens_scored for s in steps), _total(s.tokens_trained for s in steps)
    window = -(-len(steps) // 10)
    weights = [s.weight_max for s in steps if s.weight_max is not None]
    peak = record(PeakFlops, run.info.get("peak_flops") or {}, "peak_flops")
    return Summary(
        name=run.folder.resolve().name,
        coreset=run.info.get("coreset") or {},
        steps=len(steps),
        first_step=steps[0].step,
        last_step=steps[-1].step,
        epochs=next((s.epoch for s in reversed(steps) if s.epoch is not None), None),
        examples_drawn=sum(s.pool_examples for s in steps),
        examples_trained=sum(s.chosen_examples for s in steps),
        pool_size=_range(s.pool_examples for s in steps),
        chosen_size=_range(s.chosen_examples for s in steps),
        dropped_rows=run.info.get("dropped_rows"),
        tokens_scored=scored,
        tokens_trained=trained,
        **_counts(steps),
        scored_per_second=_per_second(scored, seconds),
        trained_per_second=_per_second(trained, seconds),
        scored_per_second_in_phase=_per_second(scored, spent["score"]),
        trained_per_second_in_phase=_per_second(trained, spent["train"]),
        padding_scored=_padding((s.tokens_scored, s.positions_scored) for s in steps),
        padding_trained=_padding((s.tokens_trained, s.positions_trained) for s in steps),
        positions=_positions(steps),
        mfu=_utilisation(steps),
        peak_flops=peak.value,
        peak_how=peak.how,
        reuse_mb=max((s.reuse_mb for s in steps if s.reuse_mb is not None), default=None),
        bytes_sent=dict(sum((Counter(s.bytes_sent) for s in steps), Counter())),
        token_imbalance=_mean([s.token_imbalance for s in steps if s.token_imbalance is not None]),
        **{key: _text(run.info.get(key)) for key in ("model", "claimed", "scored")},
        scoring=dict(Counter(s.scoring for s in steps if s.scoring is not None)),
        phase_seconds=seconds or None,
        wall_seconds=_wall_seconds(steps),
        phases=_phases(steps),
        sources=_sources(run, window),
        loss_window=window,
        pool_loss=_ends([s.pool_loss for s in steps], window),
        chosen_loss=_ends([s.chosen_loss for s in steps], window),
        train_loss=_ends([s.train_loss for s in steps], window),
        weighted=any(abs(weight - 1) > 1e-6 for weight in weights),
        weight_max=max(weights, default=None),
        effective_sample_size=_mean([s.effective_sample_size for s in steps if s.effective_sample_size is not None]),
        carried=next((s.carried for s in reversed(steps) if s.carried is not None), None),
        passes=tuple({s.data_pass: s.pass_rows for s in steps if s.data_pass and s.pass_rows}.values()),
        kept=tuple(sorted({name for s in steps for name in s.kept})),
        held_out=_held_out(run),
        against=(),
        gradient=_gradient(steps, seconds),
        examples=run.examples,
        before=run.before,
        after=run.after,
        notes=run.notes,
    )


def _counts(steps: tuple[StepLine, ...]) -> dict[str, Any]:
    return {
        key: _total(getattr(step, key) for step in steps) for key in ("labels_scored", "labels_trained", "rows_moved")
    }


def _positions(steps: tuple[StepLine, ...]) -> CutSummary:
    return CutSummary(
        trained=_total(s.positions_trained for s in steps),
        plain=_total(s.positions_plain for s in steps),
        largest=max((s.largest_micro_batch for s in steps if s.largest_micro_batch), default=None),
        largest_plain=max((s.largest_plain for s in steps if s.largest_plain), default=None),
    )


def phase_names(steps: Iterable[StepLine]) -> list[str]:
    """The phases that any step reports: the known ones in their order, then others as they appear."""
    seen = dict.fromkeys(name for step in steps for name in (*step.ms, *step.memory_mb))
    return [name for name in PHASES if name in seen] + [name for name in seen if name not in PHASES]


def _phases(steps: tuple[StepLine, ...]) -> tuple[PhaseSummary, ...]:
    total = sum(sum(step.ms.values()) for step in steps)
    phases = []
    for name in phase_names(steps):
        ms = [step.ms[name] for step in steps if name in step.ms]
        memory = [step.memory_mb[name] for step in steps if name in step.memory_mb]
        phase = PhaseSummary(
            name=name,
            mean_ms=_mean(ms),
            median_ms=statistics.median(ms) if ms else None,
            share=sum(ms) / total if ms and total else None,
            peak_memory_mb=max(memory, default=None),
        )
        phases.append(phase)
    return tuple(phases)


def _sources(run: RunRecord, window: int) -> tuple[SourceSummary, ...]:
    drawn, chosen, kept = Counter[str](), Counter[str](), Counter[str]()
    weights: dict[str, float] = {}
    for step in run.steps:
        drawn.update(step.drawn)
        chosen.update(step.chosen)
        kept.update(step.kept)
        for name, weight in step.weights.items():
            weights[name] = weights.get(name, 0.0) + weight
    listed = run.info.get("sources") or {}
    all_drawn, all_chosen = drawn.total(), chosen.total()
    all_weights = sum(weights.values())
    summaries = []
    for name in {*drawn, *chosen, *listed}:
        drawn_share = drawn[name] / all_drawn if all_drawn else 0.0
        chosen_share = chosen[name] / all_chosen if all_chosen else 0.0
        told = listed.get(name, {})
        summary = SourceSummary(
            name=name,
            drawn=drawn[name],
            chosen=chosen[name],
            drawn_share=drawn_share,
            chosen_share=chosen_share,
            ratio=chosen_share / drawn_share if drawn_share else None,
            kept_steps=kept[name],
            weight_share=weights.get(name, 0.0) / all_weights if all_weights else None,
            loss=_trained_loss(run.steps, name, window),
            examples=told.get("examples"),
            small=bool(told.get("small", False)) or kept[name] > 0,
        )
        summaries.append(summary)
    return tuple(sorted(summaries, key=lambda source: (-source.drawn, source.name)))


def _trained_loss(steps: tuple[StepLine, ...], name: str, window: int) -> LossSummary | None:
    """Of one source over the first and the last steps, each by the tokens that it is over."""
    first, last = (_source_loss(part, name) for part in (steps[:window], steps[-window:]))
    return None if first is last is None else LossSummary(first=first, last=last)


def _source_loss(steps: Iterable[StepLine], name: str) -> float | None:
    """The mean training loss of one source over some steps, by tokens (nats per token); None where it is not known."""
    counts = [(s.loss_tokens or {}).get(name, 0.0) for s in steps]
    losses = [(s.loss_by_source or {}).get(name, 0.0) for s in steps]
    return sum(map(mul, losses, counts)) / sum(counts) if sum(counts) else None


def held_out_name(key: str) -> str:
    """Of the set that a logged loss is of: eval_algebra_loss -> algebra; empty for eval_loss."""
    return key.removeprefix("eval_").removesuffix("loss").strip("_")


def _held_out(run: RunRecord) -> tuple[HeldOutSummary, ...]:
    found = [
        HeldOutSummary(
            name=held_out_name(key),
            first_step=curve[0][0],
            last_step=curve[-1][0],
            loss=LossSummary(first=curve[0][1], last=curve[-1][1]),
        )
        for key, curve in run.eval_losses.items()
        if len(curve) > 1
    ]
    return tuple(sorted(found, key=lambda each: each.name))


def _gradient(steps: tuple[StepLine, ...], seconds: float) -> GradientSummary | None:
    measured = [(s.gradient_error, s.ms.get("track")) for s in steps if s.gradient_error is not None]
    if not measured:
        return None
    chosen, random = ([getattr(found, which) for found, _ in measured] for which in ("chosen", "random"))
    squares = [_mean([d.error**2 for d in one if d.error is not None]) for one in (chosen, random)]
    ms = [time for _, time in measured if time is not None]
    return GradientSummary(
        steps=len(measured),
        chosen=_mean_distance(chosen),
        random=_mean_distance(random),
        squared_ratio=squares[0] / squares[1] if squares[0] is not None and squares[1] else None,
        mean_ms=_mean(ms),
        share=sum(ms) / 1000 / seconds if ms and seconds else None,
    )


def _mean_distance(found: list[Distance]) -> Distance:
    means = {
        key: _mean([value for d in found if (value := getattr(d, key)) is not None])
        for key in ("error", "cosine", "length")
    }
    return Distance(**means)


def _ends(losses: list[float | None], window: int) -> LossSummary:
    first, last = ([x for x in part if x is not None] for part in (losses[:window], losses[-window:]))
    return LossSummary(first=_mean(first), last=_mean(last))


def _wall_seconds(steps: tuple[StepLine, ...]) -> float | None:
    """Time since the start at the last step; where the clock falls back (a resumed run), parts are added."""
    clock = [step.seconds for step in steps if step.seconds is not None]
    if not clock:
        return None
    restarts = (a for a, b in pairwise(clock) if b < a)
    return sum(restarts) + clock[-1]


def _padding(counts: Iterable[tuple[int | None, int | None]]) -> float | None:
    """Share of the positions that hold no token, over the steps that count both."""
    known = [(tokens, positions) for tokens, positions in counts if tokens is not None and positions]
    positions = sum(count for _, count in known)
    return 1 - sum(tokens for tokens, _ in known) / positions if known else None


def _utilisation(steps: tuple[StepLine, ...]) -> float | None:
    """Over the time of the steps that tell it: a slow step counts for longer. None where one is above the peak, which
    was measured too low then."""
    known = [(s.mfu, sum(s.ms.values())) for s in steps if s.mfu is not None]
    if any(mfu > 1 for mfu, _ in known):
        return None
    time = sum(ms for _, ms in known)
    return sum(mfu * ms for mfu, ms in known) / time if time else None


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _total(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _range(values: Iterable[int]) -> tuple[int, int]:
    listed = list(values)
    return min(listed), max(listed)


def _per_second(tokens: int | None, seconds: float) -> float | None:
    return tokens / seconds if tokens is not None and seconds > 0 else None


def _text(value: Any) -> Any:
    return None if value is None else str(value)
