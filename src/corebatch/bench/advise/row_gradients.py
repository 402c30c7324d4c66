"""Exact gradients of single rows, a few steps into training: what choosing rows is worth is told by these.

LoRA's B begins at zero, where no gradient reaches A, and Adam's second moments are not known before a step. So some
steps of AdamW are taken first, on rows that are not measured, and taken back at the end.

Shape suffixes: P rows that are measured, D trained parameters, W columns of a sketch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from corebatch.bench.advise.finding import MORE_MINUTES
from corebatch.bench.advise.probe import Probe
from corebatch.bench.gradients.errors import Gram
from corebatch.bench.gradients.estimate import Snapshot, gradients_of_rows
from corebatch.bench.gradients.methods import Method
from corebatch.bench.gradients.population import ROWS_AT_A_TIME, Population, remembered
from corebatch.bench.gradients.run import second_moments_of, train_step
from corebatch.bench.gradients.way import Way
from corebatch.bench.runs.held_out_means import at_the_end
from corebatch.errors import CorebatchError, InputError, NonFiniteError
from corebatch.memory import FeatureMemory
from corebatch.model.modes import evaluating
from corebatch.objective import Objective
from corebatch.sampling.tags import tag
from corebatch.seeds import seeded
from corebatch.types import SOURCE

MOST_ROWS, FEWEST_ROWS = 256, 32
MOST_STEPS = 40
COLUMNS = 65521
"""W, a prime: parameters that lie at one distance from each other do not share a column. Inner products are off by
|a| |b| sqrt(2 / W) at most, in standard deviation (signs are random, Charikar, Chen, Farach-Colton 2002)."""
NORMS = "gradient_norm"
OWN_METRIC = {"sgd", "lars"}
"""Optimizers whose steps go along the gradient; others divide it by moments, or by its size, as Adam does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGradients:
    """What was measured.

    Attributes:
        population: the rows, their u_i of the config's objective, or of its end where it is a schedule.
        gram_PP: float64, inner products of u_i g_i over the mean of trained tokens, in Adam's metric; the same as
            raw_PP for an optimizer of OWN_METRIC.
        raw_PP: the same of the gradients themselves.
        factors: float64 [P], by which a summed gradient is multiplied in these.
        sizes: float64 [P], what each row adds to that by which a step divides, of mean 1.
        losses: float64 [P], mean token losses.
        seconds: of the forward and backward of a row.
        steps, step_rows: how many were taken before, and of how many rows each: fewer than the run's for want of time.
        snapshot: model and optimizer, as they are within `weights_after_steps`.
        state: of what is trained, after the steps.
        norms: lengths of gradients as they were before the steps, or None where the model gives none; why.
    """

    population: Population
    gram_PP: Tensor
    raw_PP: Tensor
    factors: Tensor
    sizes: Tensor
    losses: Tensor
    seconds: float
    steps: int
    step_rows: int
    snapshot: Snapshot
    state: Sequence[Tensor]
    norms: FeatureMemory | str

    @property
    def metrics(self) -> tuple[Tensor, ...]:
        """Inner products in the optimizer's metric, and of the gradients themselves where that is another."""
        return (self.raw_PP,) if self.gram_PP is self.raw_PP else (self.gram_PP, self.raw_PP)


@contextmanager
def weights_kept(model: Any, state: Sequence[Tensor] = ()) -> Iterator[None]:
    """With these weights of what is trained (none: its own); afterwards they are what they were."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    with torch.no_grad():
        for parameter, value in zip(trained, state, strict=False):
            parameter.copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained, before, strict=True):
                parameter.copy_(value)
        model.zero_grad(set_to_none=True)


def row_gradients(probe: Probe) -> RowGradients:
    """Measured at the first call, in some four fifths of the time that is left then at most.

    Raises:
        InputError: too few rows, or too little time for FEWEST_ROWS of them; a source that counts without rows.
        NonFiniteError: a loss is not finite.
        CorebatchError: whatever else there is to say of the model.
    """
    key = "row gradients"
    if key not in probe.known:
        try:
            probe.known[key] = _measured(probe)
        except CorebatchError as error:
            probe.known[key] = error
    if isinstance(probe.known[key], Exception):
        raise probe.known[key]
    found: RowGradients = probe.known[key]
    return found


def _measured(probe: Probe) -> RowGradients:
    model, sample = probe.model, probe.sample
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if len(sample) < FEWEST_ROWS:
        raise InputError(f"an interval needs the gradients of {FEWEST_ROWS} rows at least. Found {len(sample)} rows")
    if probe.args.label_smoothing_factor:
        raise InputError(
            "label_smoothing_factor is part of the loss, and gradients are measured of the loss without it"
        )
    with weights_kept(model), evaluating(model), probe.autocast():
        row_seconds: float = probe.known.get("seconds of a row") or _seconds_of_a_row(probe)
        probe.known["seconds of a row"] = row_seconds
        rows = _rows_that_fit(probe, row_seconds)
        population = population_of(probe, rows)
        norms = _norms(model, population, probe.seed)
        others = range(rows, len(sample)) if len(sample) - rows >= probe.batch_size else range(len(sample))
        seconds = 0.3 * probe.seconds_left
        size = min(probe.batch_size, int(seconds / row_seconds))
        optimizer, steps = _train(probe, trained, others, seconds, size)
        moments = second_moments_of(optimizer, trained)
        snapshot = Snapshot(model=model, batches=population.batches, second_moments=moments, optimizer=optimizer)
        raw, scaled, losses = sketches(snapshot, trained, probe.seed)
        state = [parameter.detach().clone() for parameter in trained]
    tokens = population.tokens.double()
    unit = (
        tokens if objective_of(probe).by_example else torch.ones_like(tokens)
    )  # of a row's loss: its mean, or its sum
    sizes = tokens / unit
    factors = population.weights / unit / sizes.mean()
    raw_PP = Gram.of(raw).scaled(factors).gram_PP
    gram_PP = Gram.of(scaled).scaled(factors).gram_PP if scaled_by_moments(probe.args) else raw_PP
    return RowGradients(
        population=population, gram_PP=gram_PP, raw_PP=raw_PP, factors=factors, sizes=sizes / sizes.mean(),
        losses=losses / tokens, seconds=row_seconds, steps=steps, step_rows=size, snapshot=snapshot, state=state,
        norms=norms,
    )  # fmt: skip


def _rows_that_fit(probe: Probe, row_seconds: float) -> int:
    """As many as go into three tenths of the time, and if these are too few, into half of it."""
    rows = int(min(MOST_ROWS, len(probe.sample), max(FEWEST_ROWS, 0.3 * probe.seconds_left / row_seconds)))
    if rows * row_seconds > 0.5 * probe.seconds_left:
        raise InputError(
            f"the gradient of a row takes {row_seconds:.2g} s, and an interval needs {FEWEST_ROWS} of them: "
            f"{MORE_MINUTES}"
        )
    return rows


def scaled_by_moments(args: Any) -> bool:
    """Whether the optimizer of these TrainingArguments steps in a metric like Adam's."""
    return str(getattr(args.optim, "value", args.optim)) not in OWN_METRIC


def objective_of(probe: Probe) -> Objective:
    """The config's, a schedule's by its end. Raises InputError: its shares change as the run goes on."""
    objective = at_the_end(probe.settings.coreset.claimed)
    if objective.online is not None:
        raise InputError(f"the shares of the objective change in the run, by the method {objective.online}")
    return objective


def epochs_of(probe: Probe) -> float:
    """How often the run draws a row."""
    args, coreset = probe.args, probe.settings.coreset
    drawn = args.max_steps * probe.batch_size * coreset.pool_factor / len(probe.mixture.dataset)
    return float(drawn if args.max_steps > 0 else args.num_train_epochs)


def population_of(probe: Probe, measured: int, drawn_of: int = 0) -> Population:
    """So many rows of the sample whose gradients are measured, by length, and then others, so that there are `drawn_of`
    or no fewer, by length as well; with their u_i.

    Raises:
        InputError: a source that counts without rows.
    """
    sample, objective, lengths = probe.sample, objective_of(probe), list(probe.sample["length"])
    parts = range(measured), range(measured, drawn_of)
    order = [row for part in parts for row in sorted(part, key=lambda row: int(lengths[row]))]
    batches = [
        probe.batch([sample[row] for row in order[start : start + ROWS_AT_A_TIME]])
        for start in range(0, len(order), ROWS_AT_A_TIME)
    ]
    tagged, table = tag(sample, "source")
    sources = torch.tensor([int(tagged[row][SOURCE]) for row in order])
    population = Population.of(batches, sources, table)
    weights = torch.ones(len(order), dtype=torch.float64)
    if objective.by_source:
        numbers = {name: number for number, name in table.names.items()}
        counted = probe.mixture.counts.items()
        counts = {name: float(one.trained_tokens) for name, one in counted if one.trained_tokens}
        shares = objective.of_sources(counts) or {}
        absent = [name for name, share in shares.items() if share and numbers.get(name) not in set(sources.tolist())]
        if absent:
            raise InputError(f"the objective counts {', '.join(absent)}. Found no row of it among {len(order)}")
        times = {name: share * sum(counts.values()) / counts[name] for name, share in shares.items()}
        weights *= torch.tensor([times[table.names[number]] for number in sources.tolist()], dtype=torch.float64)
    column = probe.settings.coreset.weight_column
    if column is not None:
        weights *= torch.tensor([float(sample[row][column]) for row in order], dtype=torch.float64)
    return replace(population, weights=weights)


def _seconds_of_a_row(probe: Probe) -> float:
    """Forward and backward of one row, of the median length."""
    lengths = sorted((int(length), row) for row, length in enumerate(probe.sample["length"]))
    batch = probe.batch([probe.sample[lengths[len(lengths) // 2][1]]])
    for _ in range(2):  # the first call sets things up
        began = time.monotonic()
        list(gradients_of_rows(Snapshot(model=probe.model, batches=[batch])))
        seconds = time.monotonic() - began
    return max(seconds, 1e-6)


def _norms(model: Any, population: Population, seed: int) -> FeatureMemory | str:
    """Lengths of gradients of the last value projections, as a run remembers them."""
    method = Method(NORMS, "importance", way=Way("remembered", {"age": 1}))
    try:
        return next(iter(remembered([method], model, population, seed).values()))
    except CorebatchError as error:  # attention without a known projection of values
        return str(error)


def _train(
    probe: Probe, trained: Sequence[Any], rows: Sequence[int], seconds: float, size: int
) -> tuple[torch.optim.Optimizer, int]:
    """Steps of AdamW on batches of a size, while the seconds last; the rate rises to the config's.

    Raises:
        InputError: not one row goes into the time, and without a step nothing is known of Adam's moments.
    """
    if size < 1:
        raise InputError(f"no time was left for a step of Adam: {MORE_MINUTES}")
    args, end = probe.args, time.monotonic() + seconds
    optimizer = torch.optim.AdamW(trained, lr=0.0, betas=(args.adam_beta1, args.adam_beta2), weight_decay=0.0)
    order = torch.randperm(len(rows), generator=seeded(probe.seed, "advise", "steps")).tolist()
    most = min(MOST_STEPS, max(1, len(rows) // size), args.max_steps if args.max_steps > 0 else MOST_STEPS)
    steps, began = 0, time.monotonic()
    while steps < most and time.monotonic() + (time.monotonic() - began) / max(1, steps) < end:
        optimizer.param_groups[0]["lr"] = args.learning_rate * (steps + 1) / most
        picks = [rows[place] for place in order[steps * size : (steps + 1) * size]]
        picks.sort(key=lambda row: int(probe.sample[row]["length"]))
        width = args.per_device_train_batch_size
        parts = [[probe.sample[row] for row in picks[start : start + width]] for start in range(0, len(picks), width)]
        train_step(probe.model, optimizer, [probe.batch(part) for part in parts])
        steps += 1
    return optimizer, steps


def sketches(snapshot: Snapshot, trained: Sequence[Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """float32 [P, W], of each row's summed gradient; the same in Adam's metric, where there are moments; and its summed
    loss, float64 [P]."""
    count = sum(parameter.numel() for parameter in trained)
    signs = torch.randint(2, (count,), generator=seeded(seed, "advise", "signs"), dtype=torch.int8).mul_(2).sub_(1)
    scale = None if snapshot.second_moments is None else snapshot.second_moments.sqrt().add_(snapshot.eps)

    def narrow(gradient_D: Tensor) -> Tensor:
        if count > COLUMNS:
            signed_D = gradient_D.float() * signs.to(gradient_D.device)
            gradient_D = nn.functional.pad(signed_D, (0, -count % COLUMNS)).view(-1, COLUMNS).sum(dim=0)
        return gradient_D.float().cpu()

    raw, scaled, losses = [], [], []
    for loss, gradient_D in gradients_of_rows(snapshot):
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss of a row is {loss}")
        raw.append(narrow(gradient_D))
        if scale is not None:
            scaled.append(narrow(gradient_D / scale))
        losses.append(loss)
    return torch.stack(raw), torch.stack(scaled or raw), torch.tensor(losses, dtype=torch.float64)
