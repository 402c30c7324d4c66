"""What a step costs beside plain accumulation: `corebatch bench step`.

Four kinds of arms train the same model on the same rows through real trainers, in turn:

- accumulation: plain training on the large batch of N rows, in micro-batches;
- small: plain training on M = N / ratio rows;
- plain_sorted: either, with the rows of a step sorted by length before they are cut into micro-batches
  (`micro_batches: positions`), since corebatch sorts what it chooses and sorting alone saves padding;
- corebatch: N rows drawn, M trained, once for each way of scoring in ARMS.

A round is every arm once, in an order that turns from round to round; a ratio of times is taken within a round, so
that whatever else the machine does falls on all alike. Weights and token ids are random: neither changes the time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from corebatch.bench.models import build_model, model_config
from corebatch.bench.steps.arm import ArmRound, Rows, mean_known, run_arm
from corebatch.bench.steps.plan import ACCUMULATION, SMALL, SORTED, StepArm, StepPlan, StepSettings
from corebatch.bench.timing import Spread, ratios, turned
from corebatch.errors import InputError
from corebatch.record.provenance import provenance


def bench_step(made: StepPlan, say: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """Runs all arms, `rounds` times in turn; one record an arm and ratio, with settings, hardware, versions, commit.

    An arm of a CoresetTrainer that the model does not go with is left out in the first round. `say`: takes a line of
    progress; names the error of an arm that is left out, as a new note of the plan does.
    """
    settings, arms = made.settings, list(made.arms)
    model = build_model(
        settings.model,
        adapter=settings.adapter,
        precision=settings.precision,
        random_weights=settings.random_weights,
        seed=settings.seed,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    steps = max(1 + arm.steps(settings.steps) + arm.period for arm in arms)
    vocabulary = model_config(settings.model).vocab_size
    rounds = [  # of each, one epoch of the longest arm
        Rows(made.shapes, steps * settings.large, vocabulary, settings.seed + number)
        for number in range(settings.rounds)
    ]
    runs: dict[StepArm, list[ArmRound]] = {arm: [] for arm in arms}
    for number in range(settings.rounds):
        began = time.perf_counter()
        for arm in turned(arms, number):
            try:
                runs[arm].append(run_arm(arm, model, rounds[number], settings, number=number, memory=number == 0))
            except InputError as error:
                if number > 0 or arm.coreset is None:
                    raise
                made.notes.append(f"left out: {arm.name} at 1/{arm.ratio} ({type(error).__name__}: {error})")
                say(made.notes[-1])
                del runs[arm]
        arms = list(runs)
        say(f"round {number + 1} of {settings.rounds}: {time.perf_counter() - began:.0f} s")
    shapes = [shape for rows in rounds for shape in rows.shapes]
    common = {
        "kind": "step",
        "model": settings.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_numbers": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "weights": "random" if settings.random_weights else "the model's",
        "adapter": settings.adapter,
        "precision": settings.precision,
        "checkpointing": settings.checkpointing,
        "large": settings.large,
        "micro_batch": settings.micro_batch,
        "lengths": str(settings.lengths) if settings.lengths is not None else f"{made.shapes[0].tokens}, fixed",
        "max_length": settings.max_length,
        "length_mean": round(statistics.mean(shape.tokens for shape in shapes), 1),
        "length_max": max(shape.tokens for shape in shapes),
        "trained_share": round(sum(shape.trained for shape in shapes) / sum(shape.tokens for shape in shapes), 3),
        "rounds": settings.rounds,
        "seed": settings.seed,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        **provenance(),
    }
    return [{**common, **measured} for measured in summaries(runs, settings)]


def summaries(runs: Mapping[StepArm, Sequence[ArmRound]], settings: StepSettings) -> list[dict[str, Any]]:
    """A record an arm: medians over the rounds, with the least and the greatest, and its ratios to the plain arms.

    The time of a trained token is taken to that of `plain_sorted` on as many rows, where there is one, else on N;
    without `plain_sorted` the ratios to it are None.
    """
    of = {(arm.kind, arm.ratio): rounds for arm, rounds in runs.items()}
    accumulation, by_length = of[ACCUMULATION, 1], of.get((SORTED, 1), [])
    found = []
    for arm, rounds in runs.items():
        first = rounds[0]
        small = of.get((SMALL, arm.ratio))
        told = ("score_share", "overhead_share", "padding_scored", "mfu")
        found.append(
            {
                "arm": arm.name,
                "ratio": arm.ratio,
                "small": settings.large // arm.ratio,
                "coreset": None if arm.coreset is None else arm.coreset.to_dict(),
                "steps": arm.steps(settings.steps),
                **_spread("step_ms", [1000 * run.seconds for run in rounds]),
                **_spread("to_accumulation", _ratios(rounds, accumulation)),
                **_spread("to_plain_sorted", _ratios(rounds, by_length)),
                **_spread("token_to_plain_sorted", _ratios_a_token(rounds, of.get((SORTED, arm.ratio), by_length))),
                **_spread("speedup", _ratios(accumulation, rounds)),
                "tokens_trained": round(statistics.mean(run.tokens for run in rounds), 1),
                "labels_trained": round(statistics.mean(run.labels for run in rounds), 1),
                "tokens_scored": round(statistics.mean(run.scored for run in rounds), 1),
                "largest_micro_batch": max(run.largest for run in rounds),
                "padding": round(1 - sum(run.tokens for run in rounds) / sum(run.cells for run in rounds), 4),
                **{key: mean_known(getattr(run, key) for run in rounds) for key in told},
                "reuse_mb": first.reuse_mb,
                "start_bytes": first.start_bytes,
                "peak_bytes": first.peak_bytes,
                "memory_to_accumulation": _ratio(first.peak_bytes, accumulation[0].peak_bytes),
                "memory_to_small": _ratio(first.peak_bytes, small[0].peak_bytes if small else None),
            }
        )
    return found


def _ratio(over: int | None, under: int | None) -> float | None:
    return round(over / under, 4) if over and under else None


def _ratios(over: Sequence[ArmRound], under: Sequence[ArmRound]) -> list[float]:
    return ratios([run.seconds for run in over], [run.seconds for run in under]) if under else []


def _ratios_a_token(over: Sequence[ArmRound], under: Sequence[ArmRound]) -> list[float]:
    """Of the times of a trained token."""
    if not under:
        return []
    return ratios([run.seconds / run.tokens for run in over], [run.seconds / run.tokens for run in under])


def _spread(key: str, values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {key: None, f"{key}_min": None, f"{key}_max": None}
    spread = Spread.of(values)
    found = {key: spread.value, f"{key}_min": spread.low, f"{key}_max": spread.high}
    return {name: round(value, 4) for name, value in found.items()}
