"""How noisy the gradient of a run is: its noise scale against the rows of a step, by source, and over checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from corebatch.bench.advise.finding import Finding
from corebatch.bench.advise.probe import Probe
from corebatch.bench.advise.row_gradients import FEWEST_ROWS, RowGradients, row_gradients, sketches, weights_kept
from corebatch.bench.advise.worth import OF
from corebatch.bench.gradients.errors import Gram
from corebatch.errors import CorebatchError, InputError
from corebatch.model.modes import evaluating
from corebatch.noise import interval_of_rows, noise_of_rows

LEVER, SMALLER, OVER_RUN = "gradient noise", "a smaller batch", "gradient noise over the run"
FEWEST_OF_SOURCE = 8
MOST_ROWS = 128
"""Rows whose gradients are taken at a checkpoint."""


@dataclass(frozen=True, slots=True)
class MeasuredScale:
    """A noise scale, in rows, and its 95 % interval; infinite where the signal does not show."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, gram_PP: Tensor, sizes: Tensor, seed: int) -> MeasuredScale:
        return cls(noise_of_rows(gram_PP, sizes).scale, *interval_of_rows(gram_PP, sizes, seed=seed))

    def __str__(self) -> str:
        return f"{_shown(self.value)} ({_shown(self.low)} to {_shown(self.high)})"

    def numbers(self) -> dict[str, float | None]:
        """Plain values; None for infinite."""
        found = {"scale": self.value, "low": self.low, "high": self.high}
        return {name: value if math.isfinite(value) else None for name, value in found.items()}


def measure(probe: Probe) -> list[Finding]:
    """The noise scale now, by source, and at checkpoints; and what a smaller batch is worth where this is above it."""
    try:
        rows = row_gradients(probe)
    except CorebatchError as error:
        return [
            Finding(lever=lever, unmeasured=str(error)) for lever in (LEVER, OVER_RUN)[: 1 + bool(probe.checkpoints)]
        ]
    raw, adam = (MeasuredScale.of(gram_PP, rows.sizes, probe.seed) for gram_PP in (rows.raw_PP, rows.gram_PP))
    found = [_now(probe, rows, raw, adam), _smaller(probe, raw)]
    return found + ([_over_run(probe, rows)] if probe.checkpoints else [])


def _now(probe: Probe, rows: RowGradients, raw: MeasuredScale, adam: MeasuredScale) -> Finding:
    batch, count, sources = probe.batch_size, len(rows.sizes), rows.population.sources
    each: dict[str, MeasuredScale] = {}
    few = []
    for number in sources.unique().tolist():
        own, name = (sources == number).nonzero().flatten(), rows.population.table.names[number]
        if len(own) < FEWEST_OF_SOURCE:
            few.append(name)
        else:
            each[name] = MeasuredScale.of(rows.raw_PP[own][:, own], rows.sizes[own], probe.seed)
    told = (
        f"the noise scale is {raw} rows, by the gradients of {count} rows after {rows.steps} steps; a step has "
        f"{batch}; in Adam's metric, where every parameter counts alike, it is {adam}"
    )
    if len(each) > 1:
        told += f"; of {', '.join(f'{name} {scale}' for name, scale in each.items())}"
    told += f"; fewer than {FEWEST_OF_SOURCE} rows of {', '.join(few)}" if few else ""
    numbers: dict[str, Any] = {
        "batch": batch, "noise_scale": raw.numbers()["scale"], "noise_scale_low": raw.numbers()["low"],
        "noise_scale_high": raw.numbers()["high"], "adam": adam.numbers(), "rows_measured": count,
        "steps_before": rows.steps, "sources": {name: scale.numbers() for name, scale in each.items()},
    }  # fmt: skip
    return Finding(lever=LEVER, why=told, numbers=numbers)


def _smaller(probe: Probe, scale: MeasuredScale) -> Finding:
    """To a given loss a run of B rows a step takes 1 + B / B_crit times the fewest rows (McCandlish et al. 2018,
    equation 2.11), with the noise scale for B_crit. As long as a step has several micro-batches it costs what its rows
    cost, so that fewer of them are as much faster. The batch stays above the upper end of the interval, and the
    learning rate goes with its root (Adam) or with it."""
    accumulation, batch, divisor = probe.args.gradient_accumulation_steps, probe.batch_size, 1
    while accumulation % (2 * divisor) == 0 and batch / (2 * divisor) >= scale.high:
        divisor *= 2
    if divisor == 1:
        which = "is not surely above twice the noise scale" if batch < 2 * scale.high else "cannot be halved"
        return Finding(lever=SMALLER, of=OF, why=f"the batch of {batch} {which}: it stays")
    power = 0.5 if "adam" in str(getattr(probe.args.optim, "value", probe.args.optim)) else 1.0
    factor, low, high = ((1 + batch / divisor / b) / (1 + batch / b) for b in (scale.value, scale.low, scale.high))
    arm = {
        "gradient_accumulation_steps": accumulation // divisor,
        "learning_rate": float(f"{probe.args.learning_rate / divisor**power:.3g}"),
    }
    why = (
        f"a step of {batch} rows is above the noise scale, of at most {_shown(scale.high)}; with {batch // divisor} a "
        "run sees fewer rows until it is as good, if its critical batch is the noise scale, in more steps; the scale "
        "grows in a run, so that this is for its beginning"
    )
    return Finding(
        lever=SMALLER, arm=arm, factor=factor, low=min(low, high), high=max(low, high), of=OF, why=why,
        numbers={"rows_of_a_step": batch // divisor},
    )  # fmt: skip


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def _over_run(probe: Probe, rows: RowGradients) -> Finding:
    """At as many checkpoints as the time allows, from the first to the last."""
    count = min(MOST_ROWS, len(rows.sizes))
    fit = int(probe.seconds_left / (count * rows.seconds))
    if fit < 1:
        count, fit = FEWEST_ROWS, int(probe.seconds_left / (FEWEST_ROWS * rows.seconds))
    if fit < 1:
        return Finding(lever=OVER_RUN, unmeasured=f"no time was left for {FEWEST_ROWS} gradients: give more --minutes")
    folders = list(probe.checkpoints)
    if len(folders) > fit:
        folders = [folders[round(place * (len(folders) - 1) / max(1, fit - 1))] for place in range(fit)]
    found: dict[str, MeasuredScale] = {}
    wrong = []
    for folder in folders:
        try:
            found[folder.name] = _at(probe, rows, folder, count)
        except CorebatchError as error:
            wrong.append(f"{folder.name}: {error}")
    if not found:
        return Finding(lever=OVER_RUN, unmeasured="; ".join(wrong))
    told = (
        f"without Adam's metric the noise scale is {', '.join(f'{scale} at {name}' for name, scale in found.items())}"
    )
    left_out = len(probe.checkpoints) - len(folders)
    told += f"; {left_out} checkpoints were left out for want of time" * bool(left_out)
    told += f"; not measured: {'; '.join(wrong)}" * bool(wrong)
    return Finding(lever=OVER_RUN, why=told, numbers={name: scale.numbers() for name, scale in found.items()})


def _at(probe: Probe, rows: RowGradients, folder: Path, count: int) -> MeasuredScale:
    """With a checkpoint's weights, of some of the rows that were measured."""
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
        load_trained_weights(model, folder)
        raw, _, _ = sketches(replace(rows.snapshot, batches=batches, second_moments=None), trained, probe.seed)
    return MeasuredScale.of(Gram.of(raw).scaled(rows.factors[picked]).gram_PP, rows.sizes[picked], probe.seed)


@torch.no_grad()
def load_trained_weights(model: Any, folder: Path) -> None:
    """Gives a model what a checkpoint has of its trained parameters.

    Raises:
        InputError: the folder has no such weights, or those of another model.
    """
    adapted = isinstance(model, PeftModel)
    try:
        if adapted:
            saved: dict[str, Tensor] = load_peft_weights(str(folder), device="cpu")
        else:
            saved = {
                name: value
                for path in sorted(folder.glob("model*.safetensors"))
                for name, value in load_file(path).items()
            }
    except Exception as error:  # of a file that is missing, damaged, or of another kind
        raise InputError(f"its weights cannot be read: {error}") from error
    if not saved:
        raise InputError(f"it has no weights of {'adapters' if adapted else 'a model'} in safetensors")
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wanted = get_peft_model_state_dict(model) if adapted else own
    _check_names(wanted, saved)
    if adapted:
        set_peft_model_state_dict(model, saved)
        return
    for name, parameter in own.items():
        parameter.copy_(saved[name])


def _check_names(wanted: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raises InputError unless all that is wanted was saved, in the same shapes."""
    missing: Sequence[str] = [name for name in wanted if name not in saved]
    other = [name for name in wanted if name in saved and saved[name].shape != wanted[name].shape]
    if missing or other:
        what = f"no {missing[0]}" if missing else f"{other[0]} of shape {list(saved[other[0]].shape)}"
        raise InputError(f"it is of another model: found {what}")


def _shown(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "infinite"
