"""How noisy the gradient of a run is: its noise scale against the rows of a step, by source, and over checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corebatch.bench.advise.batch_size import MeasuredScale, Scales, batch_levers
from corebatch.bench.advise.checkpoints import check_model, load_trained_weights
from corebatch.bench.advise.finding import MORE_MINUTES, Finding
from corebatch.bench.advise.probe import Probe
from corebatch.bench.advise.row_gradients import FEWEST_ROWS, RowGradients, row_gradients, sketches, weights_kept
from corebatch.bench.gradients.errors import Gram
from corebatch.errors import CorebatchError
from corebatch.model.modes import evaluating

LEVER, OVER_RUN = "gradient noise", "gradient noise over the run"
FEWEST_OF_SOURCE = 8
MOST_ROWS = 128
"""Rows whose gradients are taken at a checkpoint."""
FAR = 0.1
"""A cosine of weights below which a checkpoint may be of another model; long training from nothing does it as well."""


def measure(probe: Probe) -> list[Finding]:
    """The noise scale now, by source, and at checkpoints; and what another batch is worth."""
    try:
        rows = row_gradients(probe)
    except CorebatchError as error:
        return [
            Finding(lever=lever, unmeasured=str(error)) for lever in (LEVER, OVER_RUN)[: 1 + bool(probe.checkpoints)]
        ]
    raw, *own = (MeasuredScale.of(gram_PP, rows.sizes, probe.seed) for gram_PP in reversed(rows.metrics))
    scales, later = Scales(raw, *own), dict[str, MeasuredScale]()
    over_run = [_over_run(probe, rows, later)] if probe.checkpoints else []
    return [_now(probe, rows, scales), *batch_levers(probe, scales, later), *over_run]


def _now(probe: Probe, rows: RowGradients, scales: Scales) -> Finding:
    batch, count, sources = probe.batch_size, len(rows.sizes), rows.population.sources
    each: dict[str, MeasuredScale] = {}
    few = []
    for number in sources.unique().tolist():
        own, name = (sources == number).nonzero().flatten(), rows.population.table.names[number]
        if len(own) < FEWEST_OF_SOURCE:
            few.append(name)
        else:
            each[name] = MeasuredScale.of(rows.raw_PP[own][:, own], rows.sizes[own], probe.seed)
    after = f"{rows.steps} steps" + f" of {rows.step_rows} rows" * (rows.step_rows < batch)
    told = f"the noise scale is {scales}, told from {count} rows' gradients after {after}; a step has {batch}"
    if len(each) > 1:
        told += f"; by the gradients of {', '.join(f'{name} {scale}' for name, scale in each.items())}"
    told += f"; fewer than {FEWEST_OF_SOURCE} rows of {', '.join(few)}" if few else ""
    raw = scales.raw.numbers()
    numbers: dict[str, Any] = {
        "batch": batch, "verdict": scales.verdict(batch), "noise_scale": raw["scale"], "noise_scale_low": raw["low"],
        "noise_scale_high": raw["high"], "adam": None if scales.own is None else scales.own.numbers(),
        "rows_measured": count,
        "steps_before": rows.steps, "sources": {name: scale.numbers() for name, scale in each.items()},
    }  # fmt: skip
    return Finding(lever=LEVER, why=told, numbers=numbers)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def _over_run(probe: Probe, rows: RowGradients, found: dict[str, MeasuredScale]) -> Finding:
    """At as many checkpoints as the time allows, from the first to the last. found: gets their scales, by name."""
    count = min(MOST_ROWS, len(rows.sizes))
    fit = int(probe.seconds_left / (count * rows.seconds))
    if fit < 1:
        count, fit = FEWEST_ROWS, int(probe.seconds_left / (FEWEST_ROWS * rows.seconds))
    if fit < 1:
        return Finding(lever=OVER_RUN, unmeasured=f"no time was left for {FEWEST_ROWS} gradients: {MORE_MINUTES}")
    folders = list(probe.checkpoints)
    if len(folders) > fit:
        folders = [folders[round(place * (len(folders) - 1) / max(1, fit - 1))] for place in range(fit)]
    wrong, far = list[str](), list[str]()
    for folder in folders:
        try:
            found[folder.name], alike = _at(probe, rows, folder, count)
            far += [f"{folder.name} (cosine {alike:.2g})"] * (alike < FAR)
        except CorebatchError as error:
            wrong.append(f"{folder.name}: {error}")
    if not found:
        return Finding(lever=OVER_RUN, unmeasured="; ".join(wrong))
    told = (
        f"without Adam's metric the noise scale is {', '.join(f'{scale} at {name}' for name, scale in found.items())}"
    )
    told += f"; far from the model's weights, is it of the same model: {', '.join(far)}" * bool(far)
    left_out = len(probe.checkpoints) - len(folders)
    told += f"; {left_out} checkpoints were left out for want of time" * bool(left_out)
    told += f"; not measured: {'; '.join(wrong)}" * bool(wrong)
    return Finding(lever=OVER_RUN, why=told, numbers={name: scale.numbers() for name, scale in found.items()})


def _at(probe: Probe, rows: RowGradients, folder: Path, count: int) -> tuple[MeasuredScale, float]:
    """With a checkpoint's weights, of some of the rows that were measured; and the cosine of these weights and the
    model's, 1 for adapters."""
    check_model(folder, probe.model, probe.tokenizer)
    model = probe.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    picked = torch.randperm(len(rows.sizes), generator=torch.Generator().manual_seed(probe.seed))[:count].sort().values
    wanted, batches, before = set(picked.tolist()), list[Mapping[str, Tensor]](), 0
    for batch in rows.population.batches:
        size = len(batch["input_ids"])
        kept = [place for place in range(size) if before + place in wanted]
        batches += [{key: value[kept] for key, value in batch.items()}] if kept else []
        before += size
    with weights_kept(model), evaluating(model), probe.autocast():
        alike = load_trained_weights(model, folder)
        raw, _, _ = sketches(replace(rows.snapshot, batches=batches, second_moments=None), trained, probe.seed)
    gram_PP = Gram.of(raw).scaled(rows.factors[picked]).gram_PP
    return MeasuredScale.of(gram_PP, rows.sizes[picked], probe.seed), alike
