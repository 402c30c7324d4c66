"""Honesty: which runs are not comparable, and why.

Everything is checked against the plan, which was written before any run, and against the other runs of the same seed.
Where runs of a seed should agree and do not, those outside a strict majority are marked; without such a majority nobody
can tell who is right, and all are. Arms that draw sources with shares of their own draw other rows by design, and
should agree among themselves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from corebatch.bench.runs.comparison import ComparisonPlan, Mark, PlannedArm, Run

HASHED = 64
"""How many drawn examples lie between two entries of `order`."""

_COUNTED = ("steps", "rows_drawn", "rows_trained", "tokens_drawn", "tokens_trained", "flops", "seconds")
KNOWN_TO = 0.03
"""Standard error of an arm's seconds a step beside the reference's, as a share, up to which steps count as timed."""
AS_TIMED = 0.1
"""Share by which positions of runs may differ from those that their seconds and FLOPs were planned by."""
_ERRORS = 3  # standard errors by which they may differ by chance, where that is more
_SLACK = 0.01  # of seconds and FLOPs, which are products of rounded numbers

_Reason = tuple[str, str, bool]  # kind, text, excludes


def find_marks(plan: ComparisonPlan, runs: Sequence[Run]) -> tuple[Mark, ...]:
    """All marks of at most one run for each arm and seed, by the plan's order of arms, then by seed."""
    found = [
        Mark(arm=run.arm, seed=run.seed, kind=kind, text=text, excludes=excludes)
        for run in runs
        for kind, text, excludes in _alone(plan, run, runs[0])
    ]
    for alike in _by([run for run in runs if run.ok], lambda run: (plan.arm(run.arm) or plan.arms[0]).drawing).values():
        found += _other_order(alike)
        found += _other_tokens(alike)
    excluded = {(mark.arm, mark.seed) for mark in found if mark.excludes}
    found += _other_positions(plan, [run for run in runs if (run.arm, run.seed) not in excluded])
    there = {(run.arm, run.seed) for run in runs}
    found += [
        Mark(arm=arm.name, seed=seed, kind="missing", text="no run yet")
        for arm in plan.arms
        for seed in plan.seeds
        if (arm.name, seed) not in there
    ]
    place = {arm.name: number for number, arm in enumerate(plan.arms)}
    return tuple(sorted(found, key=lambda mark: (place.get(mark.arm, len(place)), mark.arm, mark.seed)))


def _alone(plan: ComparisonPlan, run: Run, first: Run) -> Iterator[_Reason]:
    """What a run's own line and the plan tell."""
    arm = plan.arm(run.arm)
    if arm is None:
        yield "arm", "the plan has no such arm", True
    if run.seed not in plan.seeds:
        yield "seed", "the plan has no such seed", True
    if not run.ok:
        yield "failed", f"failed: {run.error}", True
        return
    missing = [key for key in _COUNTED if getattr(run, key) is None and key not in run.not_finite]
    if missing:
        yield "uncounted", f"not recorded: {', '.join(missing)}", True
    if run.not_finite:
        more = f" and {len(run.not_finite) - 1} more" if len(run.not_finite) > 1 else ""
        yield "nan", f"NaN or infinite: {run.not_finite[0]}{more}", True
    elif run.final is None or not run.final.losses:
        yield "unmeasured", "no final held-out loss", True
    if arm is not None:
        yield from _allowance(plan, arm, run)
        yield from _rates(arm, run)
        if arm.budget == "wall_clock" and (arm.seconds_error or 0.0) > KNOWN_TO:
            text = f"its seconds a step beside the reference's have a standard error of {arm.seconds_error:.1%}"
            yield "uncertain", f"{text}, wanted is {KNOWN_TO:.0%}: its steps may be too few or too many", False
    if run.steps is not None and run.updates not in (None, run.steps):
        yield "updates", f"its batch grew: the rows of {run.steps:,} steps in {run.updates:,} updates", False
    yield from _tokens(arm, run)
    yield from _provenance(run, first)


def _allowance(plan: ComparisonPlan, arm: PlannedArm, run: Run) -> Iterator[_Reason]:
    """Steps and rows against the plan's; the line's own statement of it is not believed where it says more."""
    granted = {
        "steps": arm.steps,
        "rows_drawn": arm.steps * arm.rows_drawn_per_step,
        "rows_trained": arm.steps * arm.rows_trained_per_step,
    }
    for key, most in granted.items():
        stated, found, name = run.planned.get(key), getattr(run, key), key.replace("_", " ")
        if stated is not None and (stated > most or (key == "steps" and stated != most)):
            yield "allowance", f"its line allows {stated:,} {name}, the plan {most:,}", True
        most = most if stated is None else min(stated, most)
        if found is not None and found > most:
            yield f"more_{key}", f"{found:,} {name}, allowed are {most:,}", True
        elif found is not None and found < most:
            # rows may be fewer for the last batch of an epoch, and a reader may judge that; steps may not
            yield f"fewer_{key}", f"{found:,} {name} of the planned {most:,}", key == "steps"
    for key, per_step in (("seconds", arm.seconds_per_step), ("flops", arm.flops_per_step)):
        found = getattr(run, key)
        if found is None or run.steps is None or not per_step:
            continue
        before = arm.preparation_seconds if key == "seconds" else 0.0
        ends = (1 - _SLACK) * run.steps * min(per_step), (1 + _SLACK) * run.steps * max(per_step)
        if not ends[0] <= found - before <= ends[1]:
            yield f"other_{key}", f"{found:.4g} {_unit(key)} are not its steps by the plan's {_unit(key)} a step", True
    yield from _budget(plan, arm, run)


def _budget(plan: ComparisonPlan, arm: PlannedArm, run: Run) -> Iterator[_Reason]:
    """Equal steps, FLOPs or seconds mean the reference's, up to the one step by which a count may be rounded up."""
    reference = plan.reference_arm
    if arm.budget == "steps" and reference is not None and arm.steps > reference.steps:
        yield "over_budget", f"{arm.steps:,} steps at equal steps, the reference has {reference.steps:,}", True
    for budget, key, most, per_step in (
        ("wall_clock", "seconds", plan.seconds, arm.seconds_per_step),
        ("flops", "flops", plan.flops, arm.flops_per_step),
    ):
        found = getattr(run, key)
        if arm.budget != budget or most is None or found is None:
            continue
        if found > (1 + _SLACK) * most + max(per_step, default=0.0):
            yield "over_budget", f"{found:.4g} {_unit(key)}, the budget is {most:.4g}", True


def _unit(key: str) -> str:
    return "FLOPs" if key == "flops" else key


def _rates(arm: PlannedArm, run: Run) -> Iterator[_Reason]:
    for key, name in (("learning_rate", "learning rate"), ("adam_beta2", "beta2")):
        wanted, found = getattr(arm, key), getattr(run, key)
        if wanted is None and found is not None:
            yield key, f"{name} {found:g}, the plan sets none", True
        elif wanted is not None and (found is None or not math.isclose(wanted, found, rel_tol=1e-9)):
            shown = "none" if found is None else f"{found:g}"
            yield key, f"{name} {shown}, the plan's is {wanted:g}", True


def _tokens(arm: PlannedArm | None, run: Run) -> Iterator[_Reason]:
    drawn, trained = run.tokens_drawn, run.tokens_trained
    if drawn is not None and trained is not None:
        if trained > drawn:
            yield "more_tokens", f"{trained:,} tokens trained, more than the {drawn:,} drawn", True
        elif arm is not None and arm.plain and trained != drawn:
            yield "plain_tokens", f"plain, and {trained:,} tokens trained of {drawn:,} drawn", True
    if run.rows_drawn is not None and len(run.order) < run.rows_drawn // HASHED:
        text = f"order recorded for {len(run.order) * HASHED:,} of {run.rows_drawn:,} examples: cannot be checked"
        yield "order_unknown", text, True


def _provenance(run: Run, first: Run) -> Iterator[_Reason]:
    if run.commit != first.commit:
        yield "commit", f"commit {run.commit or 'unknown'}, the first line's is {first.commit or 'unknown'}", False
    for kind in ("hardware", "versions"):
        if changed := _changes(getattr(run, kind), getattr(first, kind)):
            yield kind, f"other {kind} than the first line: {changed}", False


def _changes(found: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    keys = [key for key in dict.fromkeys((*first, *found)) if found.get(key) != first.get(key)]
    return ", ".join(f"{key} {found.get(key, 'unknown')} ({first.get(key, 'unknown')})" for key in keys)


def _other_order(runs: Sequence[Run]) -> Iterator[Mark]:
    """Runs that draw other examples than the others of their seed and drawing, on what they have in common."""
    for seed, here in _by(runs, lambda run: run.seed).items():
        marked: set[str] = set()
        for place in range(max(len(run.order) for run in here)):
            longer = [run for run in here if len(run.order) > place and run.arm not in marked]
            for run in _outvoted(longer, lambda run: run.order[place]):  # noqa: B023 (called at once)
                marked.add(run.arm)
                span = f"among the examples {HASHED * place + 1:,} to {HASHED * (place + 1):,}"
                text = f"draws other examples than the other arms of seed {seed}, first {span}"
                yield Mark(arm=run.arm, seed=run.seed, kind="order", text=text)


def _other_tokens(runs: Sequence[Run]) -> Iterator[Mark]:
    """Runs whose tokens differ from those of others that drew as many examples of the same seed."""
    counted = [run for run in runs if run.rows_drawn is not None and run.tokens_drawn is not None]
    for (seed, rows), here in _by(counted, lambda run: (run.seed, run.rows_drawn)).items():
        for run in _outvoted(here, lambda run: run.tokens_drawn):
            text = (
                f"{run.tokens_drawn:,} tokens drawn in {rows:,} examples; other arms of seed {seed} drew another number"
            )
            yield Mark(arm=run.arm, seed=run.seed, kind="tokens", text=text)


def _other_positions(plan: ComparisonPlan, runs: Sequence[Run]) -> Iterator[Mark]:
    """Runs of arms at equal seconds or FLOPs whose steps were not as those that they were planned by: by the mean over
    seeds, beside the reference, whose steps set the budgets."""
    grouped = _by(runs, lambda run: run.arm)

    def of(arm: PlannedArm | None) -> tuple[float, float] | None:
        """Positions of its runs over the planned ones, and the standard error that they have by chance."""
        own = [run.positions for run in grouped.get(arm.name, ()) if run.positions is not None] if arm else []
        if arm is None or not own or not arm.positions or not arm.steps:
            return None
        return math.fsum(own) / len(own) / arm.positions, arm.positions_spread / math.sqrt(arm.steps * len(own))

    reference = plan.reference_arm
    base = of(reference)
    for arm in plan.arms:
        found = of(arm)
        if base is None or found is None or reference is None:
            continue
        share = found[0] if arm is reference else found[0] / base[0]
        chance = found[1] if arm is reference else math.hypot(found[1], base[1])
        if abs(share - 1) <= max(AS_TIMED, _ERRORS * chance) or arm.budget == "steps":
            continue
        planned = (arm.positions or 0.0) / arm.steps
        text = f"{found[0] * planned:,.0f} positions a step, its steps were planned by {planned:,.0f}"
        if arm is not reference:
            text += f" ({share:.2f} times as many beside the reference's): not at equal {_EQUAL[arm.budget]}"
        text += ". Raise compare.timing_pools in another folder"
        for run in grouped[arm.name]:
            yield Mark(arm=arm.name, seed=run.seed, kind="positions", text=text, excludes=arm is not reference)


_EQUAL = {"wall_clock": "wall-clock", "flops": "FLOPs"}


def _by(runs: Sequence[Run], key: Callable[[Run], Any]) -> dict[Any, list[Run]]:
    grouped: dict[Any, list[Run]] = {}
    for run in runs:
        grouped.setdefault(key(run), []).append(run)
    return grouped


def _outvoted(runs: Sequence[Run], value: Callable[[Run], Hashable]) -> list[Run]:
    """Those whose value is not that of a strict majority; all where values differ and none has one."""
    votes = Counter(value(run) for run in runs)
    if len(votes) < 2:
        return []
    most, count = votes.most_common(1)[0]
    return [run for run in runs if 2 * count <= len(runs) or value(run) != most]
