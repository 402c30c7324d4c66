"""What padding costs: positions a token of the micro-batches as configured, grouped, regrouped and packed, and the time
of a step with each, told from micro-batches of the run's own rows that were timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from corebatch.bench.advise.finding import MORE_MINUTES, Finding
from corebatch.bench.advise.layouts import Layouts, factor_of
from corebatch.bench.advise.probe import Probe
from corebatch.bench.advise.shapes import Dims, Timed, time_some
from corebatch.bench.advise.steps import make_steps
from corebatch.launch.cuts import STEPS, drawn_at_random, lay_out
from corebatch.mixture import row_lengths
from corebatch.model.packing import check_packing, packing_unfit
from corebatch.model.rows import pack_together
from corebatch.seeds import seeded
from corebatch.trainer import CoresetConfig
from corebatch.trainer.first_pool import is_flash

CONFIGURED, GROUPED, PACKED = "as configured", "rows grouped by length", "packed"
PLAIN, CUT = "plain cut", "cut by positions"
NO_TIME = f"there was too little time: {MORE_MINUTES}"
WORTH = 0.97
"""A step is recommended to be cut anew if the upper end of its factor's interval is below this."""
_STRATEGY = any(field.name == "train_sampling_strategy" for field in dataclasses.fields(TrainingArguments))
BY_LENGTH: dict[str, Any] = {"train_sampling_strategy": "group_by_length"} if _STRATEGY else {"group_by_length": True}
"""The Trainer's own grouping; transformers 4 has another key."""


@dataclass(frozen=True, kw_only=True)
class PaddingArm:
    """A way to cut steps.

    Attributes:
        keys: that it sets.
        coreset: with these keys set.
        rows: of a micro-batch, in the mean.
        grouped: whether steps are of rows of about one length.
    """

    keys: Mapping[str, Any]
    coreset: CoresetConfig
    rows: int
    grouped: bool = False

    @property
    def packed(self) -> bool:
        """Whether micro-batches are rows without padding."""
        return self.coreset.padding_free is True


def measure(probe: Probe) -> list[Finding]:
    """Positions a token and time of a step: as configured, told; and what other cuts make of it."""
    if (why := untold(probe)) is not None:
        return [Finding(lever="padding", unmeasured=why)]
    arms, laid = laid_arms(probe)
    configured = laid[CONFIGURED]
    numbers = {name: round(each.a_token, 4) for name, each in laid.items()}
    told = f"{configured.a_token:.2f} positions a token as configured, over {STEPS} steps"
    findings = [Finding(lever="padding", why=told, numbers={"positions_a_token": numbers})]
    own = arms[CONFIGURED].packed
    before = times(probe, packed=own)
    more = {key: probe.known.get(key, 0.0) for key in ("rest", "call")}
    own_part = arms[CONFIGURED].coreset.takes_part or CUT not in arms
    part = 0.0 if own_part else taking_part(probe, arms[CUT].coreset)
    if not isinstance(before, Timed):
        return [*findings, Finding(lever="cut of a step", unmeasured=before)]
    timed = {own: before, not own: times(probe, packed=not own)}
    for name, arm in arms.items():
        mine = timed[arm.packed]
        if name == CONFIGURED:
            continue
        if not isinstance(mine, Timed):
            findings.append(Finding(lever=name, unmeasured=mine))
            continue
        factor = factor_of(
            laid[name],
            configured,
            before,
            own=None if mine is before else mine,
            part=(part or 0.0) * arm.coreset.takes_part,
            **more,
        )
        found = _finding(name, arm, laid[name], configured, factor, flash=is_flash(probe.model))
        if part is None and arm.coreset.takes_part:
            told = f"{found.why}; what corebatch's own code adds to a step was not measured: {MORE_MINUTES}"
            found = replace(found, why=told)
        findings.append(found)
    return _best_alone(findings)


def untold(probe: Probe) -> str | None:
    """Why the micro-batches of steps cannot be told from rows' lengths, or None."""
    if probe.settings.coreset.by_length is not None:
        return "rows come by length (coreset.by_length), so that little is padded"
    if max(probe.args.world_size, 1) > 1:
        return "it is measured in one process, and this is one of several"
    return None


def laid_arms(probe: Probe) -> tuple[dict[str, PaddingArm], dict[str, Layouts]]:
    """The ways to cut steps and their micro-batches, by name; made once."""
    if "arms" not in probe.known:
        arms, lengths = arms_of(probe.settings.coreset, probe.args), row_lengths(probe.mixture.dataset)
        probe.known["arms"] = arms, {name: laid_out(arm, probe, lengths) for name, arm in arms.items()}
    found: tuple[dict[str, PaddingArm], dict[str, Layouts]] = probe.known["arms"]
    return found


def rows_of(probe: Probe, name: str) -> list[int]:
    """The rows of a way's steps, in the loader's order where it is a plain cut: numbers in the mixture."""
    laid = laid_arms(probe)[1][name]
    return [row for step in laid.pieces for piece in step for row in piece]


def times(probe: Probe, *, packed: bool) -> Timed | str:
    """Micro-batches of the first steps of all ways of cutting, timed once; or why they could not be."""
    key = f"times, packed {packed}"
    if key not in probe.known:
        arms, laid = laid_arms(probe)
        some = [laid[name] for name, arm in arms.items() if arm.packed == packed]
        why = _not_packed(probe) if packed and some else None
        probe.known[key] = why or (_timed(probe, some, packed=packed) if some else None) or NO_TIME
    found: Timed | str = probe.known[key]
    return found


def arms_of(coreset: CoresetConfig, args: Any) -> dict[str, PaddingArm]:
    """By name, the cut as configured and those that may be had in its place.

    Steps of fewer rows a micro-batch and more micro-batches train the same update: what a cut by positions saves grows
    with the micro-batches that it may sort rows into.
    """
    rows, grouped = args.per_device_train_batch_size, group_by_length(args)
    arms = {CONFIGURED: PaddingArm(keys={}, coreset=coreset, rows=rows, grouped=grouped)}
    if not grouped and coreset.sampling is None and coreset.pool_factor == 1:
        arms[GROUPED] = PaddingArm(keys=BY_LENGTH, coreset=coreset, rows=rows, grouped=True)
    by, key = coreset.cut.by, "coreset.micro_batches"
    if by != "plain" and coreset.cut.most is None:
        arms[PLAIN] = PaddingArm(keys={key: "plain"}, coreset=coreset.changed(micro_batches="plain"), rows=rows)
    cut = coreset if by == "positions" else coreset.changed(micro_batches="positions")
    own = {} if by == "positions" else {key: "positions"}
    for divisor in (1, 2, 4):
        if rows % divisor or (divisor == 1 and not own):
            continue
        asked, each = args.gradient_accumulation_steps * divisor, rows // divisor
        fewer = {"per_device_train_batch_size": each, "gradient_accumulation_steps": asked}
        name = CUT + (f", {asked} micro-batches of {each}" if divisor > 1 else "")
        arms[name] = PaddingArm(keys={**own, **(fewer if divisor > 1 else {})}, coreset=cut, rows=each)
    if coreset.padding_free is not True and cut.cut.multiple == 1:
        free = cut.changed(padding_free=True)
        arms[PACKED] = PaddingArm(keys={**own, "coreset.padding_free": True}, coreset=free, rows=rows)
    return arms


def group_by_length(args: Any) -> bool:
    """Whether the Trainer groups rows by length."""
    strategy = getattr(args, "train_sampling_strategy", "random")
    return bool(getattr(args, "group_by_length", False)) or strategy == "group_by_length"


def laid_out(arm: PaddingArm, probe: Probe, lengths: Any) -> Layouts:
    """The micro-batches of STEPS steps of an arm; all arms but grouped ones have the same rows.

    Args:
        lengths: tokens of every row of the mixture.
    """
    size = probe.batch_size
    draws = (
        _drawn_grouped(lengths, size, probe.seed) if arm.grouped else drawn_at_random(len(lengths), size, probe.seed)
    )
    pieces, dims, tokens = [], [], []
    for rows in draws:
        layout = lay_out(arm.coreset, lengths, rows, probe.args, asked=size // arm.rows)
        numbers = rows.tolist()
        made = [[numbers[row] for row in piece] for own in layout.pieces for piece in own if piece]
        pieces.append(made)
        dims.append([shape(lengths, piece, arm) for piece in made])
        tokens.append(int(lengths[rows.numpy()].sum(dtype=np.int64)))
    return Layouts(pieces=pieces, dims=dims, tokens=np.array(tokens, dtype=np.float64))


def shape(lengths: Any, piece: Sequence[int], arm: PaddingArm) -> Dims:
    """Batch rows and positions of a micro-batch of such rows."""
    own = lengths[list(piece)]
    if arm.packed:
        return 1, int(own.sum())
    multiple = arm.coreset.cut.multiple
    return len(piece), -(-int(own.max()) // multiple) * multiple


def _drawn_grouped(lengths: Any, size: int, seed: int) -> list[Tensor]:
    """The rows of steps of transformers' grouping by length, spread evenly over an epoch of it."""
    order = list(LengthGroupedSampler(size, lengths=lengths.tolist(), generator=seeded(seed, "grouped")))
    steps = max(1, len(order) // size)
    firsts = [(2 * k + 1) * steps // (2 * STEPS) * size for k in range(STEPS)]
    return [torch.tensor([order[(first + i) % len(order)] for i in range(size)]) for first in firsts]


def _timed(probe: Probe, laid: Sequence[Layouts], *, packed: bool) -> Timed | None:
    """Times micro-batches of the first steps of each way of cutting."""
    pieces = sorted({tuple(sorted(piece)) for each in laid for step in each.pieces[:4] for piece in step})
    rows, flash = [[probe.mixture.dataset[row] for row in piece] for piece in pieces], is_flash(probe.model)
    made: list[dict[str, Any]] = [
        pack_together([_tensors(row) for row in piece], flash=flash) if packed else dict(probe.collate(piece))
        for piece in rows
    ]
    return time_some(probe, made, seconds=0.5 * max(probe.seconds_left, 1.0))


def _not_packed(probe: Probe) -> str | None:
    """Why the model cannot be trained on packed rows, or None."""
    rows = [
        {key: each.to(probe.device) for key, each in _tensors(probe.sample[i]).items()}
        for i in range(min(2, len(probe.sample)))
    ]
    return packing_unfit(probe.model) or check_packing(probe.model, rows, flash=is_flash(probe.model))


def _tensors(row: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: torch.as_tensor(row[key], dtype=torch.long) for key in ("input_ids", "labels")}


def taking_part(probe: Probe, coreset: CoresetConfig) -> float | None:
    """Seconds that a step of the shortest row takes longer where it goes through corebatch's hands, as a cut does; None
    where there is or was no time to make one."""
    before = probe.known.get("short_step")
    if before is None or 4 * before > probe.seconds_left:
        return None
    made = make_steps(replace(probe, settings=replace(probe.settings, coreset=coreset)), steps=0)
    return max(0.0, (made.short_step or 0.0) - before)


def _finding(
    name: str,
    arm: PaddingArm,
    laid: Layouts,
    configured: Layouts,
    factor: tuple[float, float, float],
    *,
    flash: bool,
) -> Finding:
    told = f"{laid.a_token:.2f} positions a token after {configured.a_token:.2f}; "
    if arm.grouped:
        told += "its steps are of rows of one length, so that it is another training"
    elif name == PLAIN:
        told += "what the cut that is configured already saves"
    else:
        told += "the same update"
    if arm.packed and not flash:
        told += "; without flash attention a token meets all of its micro-batch"
    if len(configured.dims[0]) == 1 == len(laid.dims[0]) and not arm.grouped:
        told += "; a step is one micro-batch, in which nothing can be sorted"
    return Finding(
        lever=name, arm=arm.keys, factor=factor[0], low=factor[1], high=factor[2], why=told,
        recommended=not arm.grouped and name != PLAIN and factor[2] < WORTH,
        numbers={"positions_a_token": laid.a_token, "largest": laid.largest},
    )  # fmt: skip


def _best_alone(findings: Sequence[Finding]) -> list[Finding]:
    """Of cuts that may be recommended the fastest is: they set the same key."""
    asked = [finding for finding in findings if finding.recommended and finding.factor is not None]
    best = min(asked, key=lambda finding: finding.factor or 1.0, default=None)
    return [dataclasses.replace(each, recommended=each is best) for each in findings]
