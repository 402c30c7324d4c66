"""Steps of the GPU check: phases by events, reuse, memory that runs out, and costs at the shapes of a model of 1 B."""

from __future__ import annotations

import gc
import json
import logging
import re
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from corebatch.bench.models import build_model, model_config
from corebatch.bench.steps.arm import Rows
from corebatch.bench.steps.measure import bench_step
from corebatch.bench.steps.plan import ARMS, SCORED, SORTED, Shape, StepSettings, plan
from corebatch.bench.timing import turned
from corebatch.scratch import temporary_folder
from corebatch.trainer import CoresetConfig
from corebatch.trainer.parts import MemoryRanOutError
from gpu_invariants import Check
from gpu_runs import arguments, make_trainer, read_log

TINY = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 4096,
}  # fmt: skip
"""The model of a dry run."""
HELD = 0.75
"""The part of a step's peak that the device is left with, where memory is to run out: more than half of a forward."""


class Ends(TrainerCallback):
    """The moments at which steps end, the device included, in seconds."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


class Steps:
    """A model of 30 M parameters with random weights (of a dry run a tiny one), and trainings of it."""

    def __init__(self, setup: Any, precision: str, *, length: int, adapter: str = "lora") -> None:
        self.setup, self.precision, self.length = setup, precision, length
        with temporary_folder("corebatch-gpu-") as folder:
            name = "llama-30m"
            if setup.dry:
                name = str(Path(folder) / "config.json")
                Path(name).write_text(json.dumps(TINY))
            self.model = build_model(name, adapter=adapter, precision=precision, device=setup.device)
            self.vocabulary = model_config(name).vocab_size

    def run(
        self, coreset: CoresetConfig, *, rows: int, micro_batch: int, steps: int, unequal: bool = True, **settings: Any
    ) -> tuple[list[dict[str, Any]], list[float]]:
        """The lines of its steps, and the seconds between their ends.

        Args:
            rows: trained in a step.
            unequal: rows of a quarter of `length` to all of it; else all are as long.
        """
        quarters = (1, 2, 3, 4) if unequal else (4,)
        shapes = [Shape(self.length * part // 4, self.length * part // 8) for part in quarters]
        data = Rows(shapes, steps * rows * coreset.pool_factor, self.vocabulary, seed=0)
        ends = Ends()
        with temporary_folder("corebatch-gpu-") as folder:
            args = arguments(
                folder, self.setup.device, bf16=self.precision == "bfloat16", per_device_train_batch_size=micro_batch,
                gradient_accumulation_steps=rows // micro_batch, max_steps=steps, learning_rate=1e-4, **settings,
            )  # fmt: skip
            try:
                make_trainer(self.model, args, data, coreset, callbacks=[ends]).train()
                lines = read_log(Path(folder))
            finally:
                self.model.zero_grad(set_to_none=True)
                if vars(self.model).pop("_original_forward", None) is not None:
                    vars(self.model).pop("forward")  # Accelerate wraps it for autocast, once more in every run
                gc.collect()
                torch.cuda.empty_cache()
        return lines, [after - before for before, after in zip(ends.ends, ends.ends[1:], strict=False)]


# ---- phases ----------------------------------------------------------------------------------------------------------


def phases(setup: Any) -> Iterator[Check]:
    """The milliseconds of a step's phases add up to the step, and each has its peak of memory."""
    for precision in ("float32", "bfloat16"):
        yield {"check": "phases add up to the step", "precision": precision}, partial(timed_phases, setup, precision)


def timed_phases(setup: Any, precision: str) -> dict[str, Any]:
    made = Steps(setup, precision, length=32 if setup.dry else 256)
    sizes = {"rows": 4, "micro_batch": 2, "steps": 4} if setup.dry else {"rows": 32, "micro_batch": 8, "steps": 8}
    coreset = CoresetConfig(pool_factor=4, scoring={"way": "full", "reuse": False})
    lines, seconds = made.run(coreset, **sizes)
    ms = {phase: statistics.median(line["ms"][phase] for line in lines[1:]) for phase in lines[-1]["ms"]}
    peaks = {phase: max(line["memory_mb"][phase] for line in lines[1:]) for phase in lines[-1]["memory_mb"]}
    told, wall = sum(sum(line["ms"].values()) for line in lines[1:]), 1000 * sum(seconds)
    whole = {"load", "score", "select", "repack", "train", "optimizer"} <= ms.keys() & peaks.keys()
    return {
        "holds": whole and abs(told - wall) <= 0.1 * wall and min(peaks.values()) > 0,
        "difference": abs(told - wall) / wall, "bound": 0.1, "step_ms": 1000 * statistics.median(seconds), "ms": ms,
        "memory_mb": peaks, "mfu": lines[-1].get("mfu"), **sizes,
    }  # fmt: skip


# ---- reuse -----------------------------------------------------------------------------------------------------------


def reuse(setup: Any) -> Iterator[Check]:
    """What it saves to train with what the scoring forward computed; that weights stay the same is an invariant."""
    for precision in ("float32", "bfloat16"):
        for adapter in ("lora", "full"):
            said = {"check": "reuse of the scoring forward", "precision": precision, "adapter": adapter}
            yield said, partial(reused, setup, precision, adapter)


def reused(setup: Any, precision: str, adapter: str) -> dict[str, Any]:
    made = Steps(setup, precision, length=32 if setup.dry else 256, adapter=adapter)
    sizes = {"rows": 4, "micro_batch": 2, "steps": 2} if setup.dry else {"rows": 32, "micro_batch": 8, "steps": 5}
    lines: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(1 if setup.dry else 2):
        for again in turned((False, True), number):
            coreset = CoresetConfig(pool_factor=2, scoring={"way": "full", "reuse": again})
            found, seconds = made.run(coreset, checkpointing=True, **sizes)
            lines[again] += found[1:]
            times[again] += seconds
    of = {
        "with" if again else "without": {
            "step_ms": 1000 * statistics.median(times[again]),
            "train_ms": statistics.median(line["ms"]["train"] for line in lines[again]),
            "peak_mb": max(max(line["memory_mb"].values()) for line in lines[again]),
        }
        for again in (False, True)
    }
    kept = min(line["reuse_mb"] for line in lines[True])
    return {"holds": kept > 0, "reuse_mb": kept, **of, **sizes}


# ---- memory that runs out --------------------------------------------------------------------------------------------


def memory(setup: Any) -> Iterator[Check]:
    """A forward of scoring that does not fit goes on in halves; a micro-batch that does not fit names the key that
    makes it fit, and with that key it does."""
    yield {"check": "scoring goes on in halves", "precision": "float32"}, partial(halves, setup)
    yield {"check": "the advised micro-batch fits", "precision": "float32"}, partial(advised, setup)


@contextmanager
def left_with(made: Steps, peak_mb: float, positions: int) -> Iterator[None]:
    """The device has HELD of the peak. Of a dry run: a forward of more than HELD of the positions has no memory."""
    if not made.setup.dry:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(HELD * peak_mb * 2**20 / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return

    def full(_: Any, given: tuple[Any, ...]) -> None:
        if given[0].numel() > HELD * positions:
            raise torch.OutOfMemoryError("Memory of a dry run is out.")

    hook = made.model.get_input_embeddings().register_forward_pre_hook(full)
    try:
        yield
    finally:
        hook.remove()


class Told(logging.Handler):
    """What a logger warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def halves(setup: Any) -> dict[str, Any]:
    made = Steps(setup, "float32", length=16 if setup.dry else 512)
    pool = 4 if setup.dry else 32
    coreset = CoresetConfig(pool_factor=pool, scoring={"way": "full", "rows": 4 * pool, "reuse": False})
    sizes = {"rows": 4, "micro_batch": 2, "steps": 2, "unequal": False}
    whole, _ = made.run(coreset, **sizes)
    peaks = whole[0]["memory_mb"]
    others = max(value for phase, value in peaks.items() if phase != "score")
    if not setup.dry and peaks["score"] * HELD < 1.2 * others:
        raise SystemExit(f"The scoring forward should hold more than anything else. Found {peaks} MB.")
    told = Told()
    logger = logging.getLogger("corebatch.batch.forwards")
    logger.addHandler(told)
    try:
        with left_with(made, peaks["score"], 4 * pool * made.length):
            less, _ = made.run(coreset, **sizes)
    finally:
        logger.removeHandler(told)
    ran_out = [message for message in told.messages if message.startswith("Memory ran out while scoring")]
    return {
        "holds": bool(ran_out) and len(less) == 2 and all(line["examples_scored"] == 4 * pool for line in less),
        "halved": len(ran_out), "peak_mb": peaks["score"], "peak_mb_after": less[-1]["memory_mb"]["score"],
        "same_first_choice": whole[0]["chosen"] == less[0]["chosen"],
    }  # fmt: skip


def advised(setup: Any) -> dict[str, Any]:
    made = Steps(setup, "float32", length=16 if setup.dry else 512)
    rows = 8 if setup.dry else 32
    sizes = {"rows": 2 * rows, "micro_batch": rows, "steps": 2, "unequal": False}
    coreset = CoresetConfig(pool_factor=1, micro_batches="positions")
    whole, _ = made.run(coreset, **sizes)
    peak, message, fitted = whole[-1]["memory_mb"]["train"], "", []
    with left_with(made, peak, rows * made.length):
        try:
            made.run(coreset, **sizes)
        except MemoryRanOutError as error:
            message = str(error)
        gc.collect()
        torch.cuda.empty_cache()
        most = re.search(r"micro_batches to \{by: positions, most: (\d+)\}", message)
        if most is not None:
            smaller = coreset.changed(micro_batches={"by": "positions", "most": int(most[1])})
            fitted, _ = made.run(smaller, **sizes)
    last = fitted[-1]["memory_mb"]["train"] if fitted else None
    return {"holds": len(fitted) == 2, "told": message[-200:], "peak_mb": peak, "peak_mb_after": last}


# ---- a model of 1 B --------------------------------------------------------------------------------------------------

MOST_MEMORY = 1.05
"""Of a step with a choice, to plain accumulation's."""
KEPT = ("default", SCORED, "remembered")
"""The arms of corebatch that are timed, beside the plain ones."""


def scale(setup: Any, adapter: str, length: int) -> Iterator[Mapping[str, Any]]:
    """Costs of a step with Llama-3.2-1B's shapes and random weights: `micro_batches` and selection, by ratio; rows of
    a quarter of the length to all of it. Lines of `corebatch bench step`."""
    sizes = {"large": 32, "micro_batch": 4} if length < 1024 else {"large": 16, "micro_batch": 2}
    with temporary_folder("corebatch-gpu-") as folder:
        model, lengths = "llama-3.2-1b", Path(folder) / "lengths.jsonl"
        if setup.dry:
            model, length, sizes = str(Path(folder) / "config.json"), length // 32, {"large": 8, "micro_batch": 1}
            Path(model).write_text(json.dumps(TINY))
        rows = [{"input_ids": [1] * (length * part // 8)} for part in range(2, 9)]
        lengths.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = StepSettings(
            model=model, adapter=adapter, precision="bfloat16", ratios=[2] if setup.dry else [2, 4], lengths=lengths,
            max_length=length, steps=1 if setup.dry else 2, rounds=1 if setup.dry else 2,
            arms={name: None for name in ARMS if name not in KEPT}, **sizes,
        )  # fmt: skip
        made = plan(settings)
        lines = bench_step(made, say=partial(print, flush=True))
        for line in lines:
            named = {"model": "tiny" if setup.dry else model, "lengths": f"{length // 4} to {length}"}
            fits = _fits(line, lines[0], setup.dry)
            yield {"check": "a step fits", "holds": fits, **line, **named, "left_out": made.notes or None}


def _fits(line: Mapping[str, Any], accumulation: Mapping[str, Any], dry: bool) -> bool:
    """Sorted rows have no larger micro-batch than plain accumulation; the default takes hardly more memory, which a
    tiny model's inputs would hide."""
    if line["arm"] == SORTED and line["ratio"] == 1:
        return bool(line["largest_micro_batch"] <= accumulation["largest_micro_batch"])
    return line["arm"] != "default" or dry or bool(line["memory_to_accumulation"] <= MOST_MEMORY)
