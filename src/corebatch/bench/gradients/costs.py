"""What scoring and training cost in forwards, measured on the model, the data and the machine at hand.

The unit is the forward of one example of the population in the mean, without gradients, its head on label positions
only (the scorer `loss`). Everything is timed on the same rows: the longest first, in forwards of about equal positions,
through the trainer's own scoring. A window's forwards hold more rows, as they do in a step.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from corebatch.bench.gradients.methods import Method
from corebatch.bench.gradients.population import ROWS_AT_A_TIME, Population, PopulationScoring
from corebatch.bench.gradients.way import Way
from corebatch.bench.timing import Spread, ratios
from corebatch.errors import InputError
from corebatch.model.flops import finish
from corebatch.model.modes import base_model, forward_inputs, modes_kept, scoring_mode
from corebatch.model.rows import trained_tokens
from corebatch.scoring import Scorer, Scores
from corebatch.scoring.base import LossUnit
from corebatch.trainer.config import CoresetConfig

ROWS = 128
"""How many examples are timed, evenly spread over the population."""

ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What was measured.

    Attributes:
        rows, rounds: how many examples were timed, and how often.
        forward_ms: milliseconds of the unit, median.
        all_logits: of a forward that builds all logits, in the unit.
        training: (forward + backward) / forward: c, of the model's own loss, which builds all logits.
        training_checkpointing: the same with activation checkpointing; None for a model without it.
        scoring: s by `Method.forward`; a method that runs no forward has none.
        scoring_all_logits: the same in forwards that build all logits.
    """

    rows: int
    rounds: int
    forward_ms: float
    all_logits: Spread
    training: Spread
    training_checkpointing: Spread | None
    scoring: Mapping[str, Spread]
    scoring_all_logits: Mapping[str, Spread]


def measure_costs(
    model: Any,
    population: Population,
    methods: Sequence[Method],
    *,
    rows: int = ROWS,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Costs:
    """Times all distinct forwards of the methods, a plain forward and training, in turn, `rounds` times after a
    warm-up.

    The model is left as it was: weights, gradients, modes, checkpointing, random state.

    Raises:
        InputError: fewer than one row or round.
    """
    if rows < 1 or rounds < 1:
        raise InputError(f"Costs should be timed on at least one row in one round. Found {rows} and {rounds}.")
    timed = torch.linspace(0, len(population) - 1, min(rows, len(population))).round().long()
    checkpointing = bool(getattr(base_model(model), "supports_gradient_checkpointing", False))
    plain: dict[str, Scorer | str] = {"plain": "loss", "all logits": _AllLogits(), "training": _Training()}
    if checkpointing:
        plain["checkpointing"] = plain["training"]
    arms = {name: PopulationScoring(_settings(scorer, seed), population) for name, scorer in plain.items()}
    wanted: dict[str, PopulationScoring] = {}
    for method in methods:
        if method.way.price() > 0 and method.forward not in wanted:
            timed_way = method.way if method.way.strategy.own_forward else Way()
            alike = dataclasses.replace(method, way=timed_way)
            scoring = PopulationScoring(alike.coreset(seed, ROWS_AT_A_TIME), population)
            if scoring.runs_forwards:
                wanted[method.forward] = scoring
    arms |= wanted
    times: dict[str, list[float]] = {name: [] for name in arms}
    device = population.batches[0]["input_ids"].device
    with _as_training(model, device):
        for name, arm in arms.items():
            with checkpointing_set(model, name == "checkpointing"):
                arm.score(model, timed[: 2 * ROWS_AT_A_TIME])
        for _ in range(rounds):
            for name, arm in arms.items():
                with checkpointing_set(model, name == "checkpointing"):
                    finish(device)
                    start = time.perf_counter()
                    arm.score(model, timed)
                    finish(device)
                    times[name].append(time.perf_counter() - start)
    unit = times["plain"]
    return Costs(
        rows=len(timed),
        rounds=rounds,
        forward_ms=1000 * statistics.median(unit) / len(timed),
        all_logits=Spread.of(ratios(times["all logits"], unit)),
        training=Spread.of(ratios(times["training"], unit)),
        training_checkpointing=Spread.of(ratios(times["checkpointing"], unit)) if checkpointing else None,
        scoring={name: Spread.of(ratios(times[name], unit)) for name in wanted},
        scoring_all_logits={name: Spread.of(ratios(times[name], times["all logits"])) for name in wanted},
    )


class _AllLogits(Scorer):
    """A plain forward that builds the logits of all positions."""

    name = "all_logits"

    def _run(self, model: nn.Module, batch: Mapping[str, Tensor], loss: LossUnit, seed: int) -> Scores:
        with scoring_mode(model):
            model(**forward_inputs(batch))
        return _nothing(batch)


class _Training(Scorer):
    """Forward and backward of the model's own loss, with gradients of all that is trained."""

    name = "training"

    def _run(self, model: nn.Module, batch: Mapping[str, Tensor], loss: LossUnit, seed: int) -> Scores:
        trained = [p for p in model.parameters() if p.requires_grad]
        with torch.enable_grad():
            found = model(**forward_inputs(batch), labels=batch["labels"]).loss
            torch.autograd.grad(found, trained, allow_unused=True)  # `backward` would leave gradients behind
        return _nothing(batch)


def _nothing(batch: Mapping[str, Tensor]) -> Scores:
    tokens = trained_tokens(batch["labels"])
    return Scores(features=torch.zeros(len(tokens), 1, device=tokens.device), losses=None, tokens=tokens)


def _settings(scorer: str | Scorer, seed: int) -> CoresetConfig:
    return CoresetConfig(scorer=scorer, selector="importance", seed=seed, scoring={"rows": ROWS_AT_A_TIME})


@contextmanager
def _as_training(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Training mode, in which alone transformers checkpoints; afterwards each module's own, and the random state."""
    with modes_kept(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model.train()
        yield


@contextmanager
def checkpointing_set(model: Any, wanted: bool) -> Iterator[None]:
    """Activation checkpointing as wanted; afterwards as it was."""
    inner = base_model(model)
    before = any(getattr(module, "gradient_checkpointing", False) for module in inner.modules())
    if before != wanted:
        _switch(inner, wanted)
    try:
        yield
    finally:
        if before != wanted:
            _switch(inner, before)


def _switch(model: Any, on: bool) -> None:
    word = "enable" if on else "disable"
    named_in_4 = f"gradient_checkpointing_{word}"
    switch = getattr(model, f"activation_checkpointing_{word}", None) or getattr(model, named_in_4)
    switch(*([{"use_reentrant": False}] if on else []))
    if not on and hasattr(model, "_require_grads_hook"):  # else the backward would go down to the embeddings for good
        model.disable_input_require_grads()
