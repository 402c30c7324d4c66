"""What a step costs: time by phase and memory, predicted and measured; and what activation checkpointing costs."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Sequence
from typing import Any

import psutil
import torch

from corebatch.bench.advise import padding
from corebatch.bench.advise.finding import MORE_MINUTES, Finding
from corebatch.bench.advise.layouts import step_seconds
from corebatch.bench.advise.probe import Probe
from corebatch.bench.advise.shapes import Dims, Timed, train_once
from corebatch.bench.advise.steps import StepTimes, make_steps
from corebatch.bench.gradients.costs import checkpointing_set
from corebatch.bench.live_bytes import LiveBytes
from corebatch.config.building import skeleton
from corebatch.mixture import row_lengths
from corebatch.model.flops import peak_flops
from corebatch.model.footprint import Memory, predict
from corebatch.model.model_flops import flops_or_reason

MB = 2**20
FULL = 0.6
"""The share of the device's memory that a prediction may fill where nothing is measured."""


def measure(probe: Probe) -> list[Finding]:
    """Time of a step by phase, memory, and activation checkpointing."""
    packed = probe.settings.coreset.padding_free is True
    timed: Timed | str = padding.untold(probe) or padding.times(probe, packed=packed)
    findings = [_time(probe, timed)]
    largest = _largest(probe)
    some = fitting(largest, timed, probe.seconds_left / 3)  # counting bytes on a CPU slows a step
    findings.append(_memory(probe, some))
    again = fitting(largest, timed, probe.seconds_left / 8)
    findings += _checkpointing(probe, largest, again)
    return findings


def fitting(dims: Dims, timed: Timed | str, seconds: float) -> Dims:
    """A micro-batch of as many of these rows, one at least, as are told to be trained in so many seconds."""
    if timed == padding.NO_TIME:
        return 1, dims[1]
    told = float(timed.predict([dims])[0]) if isinstance(timed, Timed) else 0.0
    return (max(1, int(dims[0] * min(1.0, max(seconds, 0.0) / told))) if told > 0 else dims[0]), dims[1]


# ---- time ------------------------------------------------------------------------------------------------------------


def _time(probe: Probe, timed: Timed | str) -> Finding:
    """Seconds of a step. What a step is beside forward and backward is left for other measurements (`rest`, `step`)."""
    lever = "time of a step"
    numbers: dict[str, Any] = {}
    told = ""
    if isinstance(timed, Timed):
        laid = padding.laid_arms(probe)[1][padding.CONFIGURED]
        seconds = float(step_seconds(laid, timed).mean())
        numbers["told_seconds"] = seconds
        told = f"{_spoken(seconds)} of forward and backward, told from {len(timed.dims)} micro-batches"
        if 2 * seconds > probe.seconds_left:  # one step to begin with and one to measure, which may be longer
            probe.known["step"] = seconds
            told += f"; a whole step does not go into the time: {MORE_MINUTES}"
            return Finding(lever=lever, why=told, numbers=numbers)
    laid_out = padding.group_by_length(probe.args) and isinstance(timed, Timed)
    probe.known["no time for a step"] = timed == padding.NO_TIME
    if timed == padding.NO_TIME:
        return Finding(lever=lever, unmeasured=timed)
    made = make_steps(probe, padding.rows_of(probe, padding.CONFIGURED) if laid_out else ())
    if not made.seconds:
        return Finding(lever=lever, unmeasured="the run makes no second step", numbers=numbers)
    probe.known |= {"rest": made.rest, "step": statistics.mean(made.seconds), "optimizer_bytes": made.optimizer_bytes}
    probe.known["optimizer"] = statistics.mean(made.optimizer)
    probe.known["short_step"] = made.short_step
    probe.known["token"] = sum(made.seconds) / sum(made.tokens)
    numbers |= _numbers(made)
    if isinstance(timed, Timed):
        if made.short is not None:
            more = (made.short - float(timed.predict(made.short_dims).sum())) / len(made.short_dims)
            probe.known["call"] = max(0.0, more)
        told_of = [timed.predict(dims) + probe.known.get("call", 0.0) for dims in made.dims]
        numbers["predicted_train_seconds"] = statistics.mean(float(each.sum()) for each in told_of)
    numbers |= _flops(probe, made)
    return Finding(lever=lever, why="; ".join(_words(probe, numbers)), numbers=numbers)


def _numbers(made: StepTimes) -> dict[str, Any]:
    phases = {"load": made.load, "train": made.train, "optimizer": made.optimizer}
    return {
        "step_seconds": statistics.mean(made.seconds),
        **{f"{name}_seconds": statistics.mean(each) for name, each in phases.items()},
        "steps": len(made.seconds),
        "tokens": statistics.mean(made.tokens),
        "positions": statistics.mean(sum(b * w for b, w in step) for step in made.dims),
        "optimizer_bytes": made.optimizer_bytes,
    }


def _words(probe: Probe, numbers: dict[str, Any]) -> list[str]:
    step = numbers["step_seconds"]
    shares = {"train": "forward and backward", "load": "loading and choosing", "optimizer": "optimizer"}
    told = ", ".join(f"{words} {numbers[f'{key}_seconds'] / step:.0%}" for key, words in shares.items())
    compiled = ", not compiled" if probe.args.torch_compile else ""
    found = [f"{_spoken(step)} in {numbers['steps']} steps{compiled}: {told}"]
    if "predicted_train_seconds" in numbers:
        found.append(f"forward and backward were told to take {_spoken(numbers['predicted_train_seconds'])}")
    if numbers.get("peak_share") is not None:
        found.append(f"{numbers['flops_a_second'] / 1e9:,.0f} GFLOP/s are {numbers['peak_share']:.0%} of the device's")
    total = steps_of_run(probe)
    if total is not None:
        found.append(f"the run's {total:,} steps take {_spoken(total * step)}")
    return found


def steps_of_run(probe: Probe) -> int | None:
    """Optimizer steps of the whole run, or None where the order of rows is not the Trainer's."""
    args, coreset = probe.args, probe.settings.coreset
    if args.max_steps > 0:
        return int(args.max_steps)
    if coreset.sampling is not None or coreset.by_length is not None:
        return None
    drawn = probe.batch_size * coreset.pool_factor
    return math.ceil(args.num_train_epochs * math.ceil(len(probe.mixture.dataset) / drawn))


def _flops(probe: Probe, made: StepTimes) -> dict[str, Any]:
    """FLOPs that the trained tokens need, without padding, and what share of the device's peak that is."""
    flops, _ = flops_or_reason(probe.model, probe.batch([probe.sample[0]]))
    if flops is None:
        return {}
    rows = probe.batch_size
    needed = flops.step(scored=0, scored_rows=0, trained=round(statistics.mean(made.tokens)), trained_rows=rows)
    dtype = torch.bfloat16 if probe.args.bf16 else torch.float16 if probe.args.fp16 else probe.model.dtype
    each = needed / statistics.mean(made.seconds)
    return {"flops": needed, "flops_a_second": each, "peak_share": each / peak_flops(probe.device, dtype).value}


def _spoken(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * size or unit == "s":
            return f"{seconds / size:.3g} {unit}"
    return ""


# ---- memory ----------------------------------------------------------------------------------------------------------


def _largest(probe: Probe) -> Dims:
    """The largest micro-batch of the steps that are laid out, else of rows of the longest length."""
    args = probe.args
    if padding.untold(probe) is not None or probe.settings.coreset.padding_free is True:
        return args.per_device_train_batch_size, int(row_lengths(probe.mixture.dataset).max())
    laid = padding.laid_arms(probe)[1][padding.CONFIGURED]
    return max((dims for step in laid.dims for dims in step), key=lambda dims: dims[0] * dims[1])


def _predicted(probe: Probe, dims: Dims, *, checkpointing: bool) -> Memory:
    settings = probe.settings
    return predict(
        skeleton(settings), rows=dims[0], tokens=dims[1], pool_factor=settings.coreset.pool_factor,
        checkpointing=checkpointing, four_bits=settings.model.load_in_4bit, optim=str(probe.args.optim),
    )  # fmt: skip


def _memory(probe: Probe, dims: Dims) -> Finding:
    """Bytes of a forward and backward of a micro-batch, predicted on a model without weights and measured."""
    memory = _predicted(probe, dims, checkpointing=checkpointed(probe))
    state = probe.known.get("optimizer_bytes") or memory.optimizer
    total, lever = device_bytes(probe) / MB, "memory"
    parts = {
        "predicted": memory.total, "weights": memory.weights, "gradients": memory.gradients,
        "optimizer": memory.optimizer, "activations": memory.activations or math.nan,
    }  # fmt: skip
    numbers = {**{f"{name}_mb": each / MB for name, each in parts.items()}, "device_mb": total}
    numbers |= {"rows": dims[0], "positions": dims[1]}
    told = f"{memory.total / MB:,.0f} MB predicted for a micro-batch of {dims[0]} x {dims[1]} positions"
    try:
        measured = peak_bytes(probe, dims) + state
    except torch.OutOfMemoryError:
        return Finding(lever=lever, unmeasured=f"{told}, and the device's {total:,.0f} MB are too few", numbers=numbers)
    numbers["measured_mb"] = measured / MB
    each = f"weights {memory.weights / MB:,.0f}, gradients {memory.gradients / MB:,.0f}, optimizer {state / MB:,.0f}"
    told += f", {measured / MB:,.0f} MB measured, of the device's {total:,.0f} MB ({each})"
    return Finding(lever=lever, why=told, numbers=numbers)


def peak_bytes(probe: Probe, dims: Dims) -> int:
    """The peak over a forward and backward of such a micro-batch, weights and gradients included."""
    batch = _batch(probe, dims)
    gc.collect()
    if probe.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(probe.device)
        train_once(probe, batch)
        return int(torch.cuda.max_memory_allocated(probe.device))
    live = LiveBytes()
    live.track([*probe.model.parameters(), *probe.model.buffers()])
    with live:
        train_once(probe, batch)
    return live.peak_bytes


def _batch(probe: Probe, dims: Dims) -> dict[str, Any]:
    """A micro-batch of such a shape from the sample's rows, the longest first, each cut or repeated to the width."""
    longest = sorted(range(len(probe.sample)), key=lambda i: -probe.sample[i]["length"])[: dims[0]]
    rows = [probe.sample[longest[i % len(longest)]] for i in range(dims[0])]
    return probe.batch([{key: _wide(row[key], dims[1]) for key in ("input_ids", "labels")} for row in rows])


def _wide(values: Sequence[int], width: int) -> list[int]:
    return [values[i % len(values)] for i in range(width)]


def device_bytes(probe: Probe) -> int:
    """Memory of the device: a GPU's, or the machine's."""
    if probe.device.type == "cuda":
        return int(torch.cuda.get_device_properties(probe.device).total_memory)
    return int(psutil.virtual_memory().total)


# ---- activation checkpointing ----------------------------------------------------------------------------------------


def checkpointed(probe: Probe) -> bool:
    """Whether activations are recomputed in the backward."""
    return bool(getattr(probe.args, "activation_checkpointing", None) or probe.args.gradient_checkpointing)


def _checkpointing(probe: Probe, largest: Dims, some: Dims) -> list[Finding]:
    """What leaving it out is worth, where it is on; nothing where it is off.

    Args:
        largest: the micro-batch that would have to fit into memory.
        some: the one that is timed.
    """
    if not checkpointed(probe):
        return []
    lever = "no activation checkpointing"
    needed = _predicted(probe, largest, checkpointing=False)
    fits = needed.activations is not None and needed.total < FULL * device_bytes(probe)
    told = f"{needed.total / MB:,.0f} MB predicted without it, of the device's {device_bytes(probe) / MB:,.0f} MB"
    if not fits:
        return [Finding(lever=lever, unmeasured=f"{told}: it is needed, or nothing is known")]
    batch, ratios = _batch(probe, some), []
    for _ in range(3):
        took = {}
        for on in (True, False):
            with checkpointing_set(probe.model, on):
                took[on] = train_once(probe, batch)
        ratios.append(took[False] / took[True])
    train, rest = statistics.median(ratios), probe.known.get("rest", 0.0)
    share = 1 - rest / probe.known["step"] if probe.known.get("step") else 1.0
    low, factor, high = (1 - share * (1 - each) for each in (min(ratios), train, max(ratios)))
    keys = [k for k in ("activation_checkpointing", "gradient_checkpointing") if probe.settings.training.get(k)]
    found = Finding(
        lever=lever, arm=dict.fromkeys(keys, False), factor=factor, low=low, high=high, why=told,
        recommended=high < padding.WORTH, numbers={"predicted_mb": needed.total / MB},
    )  # fmt: skip
    return [found]
