"""What a run leaves beside the Trainer's own files: `corebatch.json` once, `selection.jsonl` a line a step."""

from __future__ import annotations

import datetime
import json
import math
import platform
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import TrainerCallback

from corebatch.errors import CheckpointError, NonFiniteError
from corebatch.trainer.checkpoint import write_text
from corebatch.trainer.tagging import Sources

LOG, RUN = "selection.jsonl", "corebatch.json"


class Phases:
    """Milliseconds and peak memory of the phases of one step.

    On a GPU each boundary waits for the device, so that time is counted where it is spent; memory is the allocator's
    peak. On CPU memory is the process's resident set at the end of the phase. Both in MB (2^20 bytes).
    """

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self.memory_mb: dict[str, float] = {}
        self._gpu = torch.cuda.is_available()
        self._process = psutil.Process()
        self.start()

    def start(self) -> None:
        """Starts the clock of the next phase."""
        if self._gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._since = time.perf_counter()

    def end(self, phase: str) -> None:
        """Counts the time since the last boundary to `phase`, and starts the next one's."""
        if self._gpu:
            torch.cuda.synchronize()
        self.ms[phase] = self.ms.get(phase, 0.0) + 1000 * (time.perf_counter() - self._since)
        used = torch.cuda.max_memory_allocated() if self._gpu else self._process.memory_info().rss
        self.memory_mb[phase] = max(self.memory_mb.get(phase, 0.0), used / 2**20)
        self.start()


class Recorder(TrainerCallback):
    """Writes the record of a run, on rank 0 alone; times training and the optimizer on every rank."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.step: dict[str, Any] | None = None
        self.phases = Phases()
        self.losses: list[Tensor] = []
        self._loss: float | None = None
        self._since_log: list[dict[str, Any]] = []
        self._began = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter()
        self.step, self._since_log, self.losses = None, [], []
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / RUN, json.dumps(self._trainer.coreset_record(), indent=1, default=str) + "\n")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raises NonFiniteError, on every rank alike, before a loss that is not finite moves any weight."""
        self.phases.end("train")
        self._loss = None
        if self.losses:
            loss = torch.stack(self.losses).sum()
            if self._trainer.accelerator.num_processes > 1:
                loss = self._trainer.accelerator.reduce(loss, reduction="mean")
            self._loss = float(loss)
            if not math.isfinite(self._loss):
                raise NonFiniteError(
                    f"At step {state.global_step + 1} the loss of the small batch should be finite. "
                    f"Found {self._loss}. No weight was moved."
                )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.phases.end("optimizer")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.step is None:
            return
        phases = self.phases
        line = {
            "step": state.global_step,
            "epoch": state.epoch,
            **self.step,
            "train_loss": self._loss,
            "ms": {key: round(value, 3) for key, value in phases.ms.items()},
            "memory_mb": {key: round(value, 1) for key, value in phases.memory_mb.items()},
            "seconds": round(time.perf_counter() - self._began, 3),
        }
        self._since_log.append(line)
        self.step, self.losses = None, []
        if state.is_world_process_zero:
            with open(Path(args.output_dir) / LOG, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.phases = Phases()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.save_coreset_state()

    def take_means(self) -> dict[str, float]:
        """What the Trainer's log shows beside its own numbers: means over the steps since the last call."""
        lines, self._since_log = self._since_log, []
        if not lines:
            return {}
        means = {}
        for key in ("pool_loss", "chosen_loss"):
            values = [line[key] for line in lines if line[key] is not None]
            if values:
                means[key] = sum(values) / len(values)
        seconds = sum(sum(line["ms"].values()) for line in lines) / 1000
        for key in ("tokens_scored", "tokens_trained"):
            means[key] = sum(line[key] for line in lines) / len(lines)
            means[f"{key}_per_second"] = sum(line[key] for line in lines) / max(seconds, 1e-9)
        return means


def start_log(output_dir: Path, steps: int) -> None:
    """Makes `selection.jsonl` end with step `steps`: a resumed run goes on there. A new run (0 steps) keeps the
    old file under another name.

    Raises:
        CheckpointError: the file lacks lines up to that step.
    """
    path = output_dir / LOG
    if steps == 0:
        if path.exists():
            number = 1
            while (old := output_dir / f"selection.old-{number}.jsonl").exists():
                number += 1
            path.rename(old)
        return
    kept: list[str] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] > steps:
                    break
            except (ValueError, KeyError, TypeError):
                break  # the line that a killed run did not finish
            kept.append(line)
    if len(kept) != steps:
        raise CheckpointError(
            f"{path} should have a line for each of the {steps} steps of the checkpoint. Found {len(kept)}."
        )
    write_text(path, "".join(line + "\n" for line in kept))


RECORDED = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "max_steps", "num_train_epochs"),
    *("optim", "lr_scheduler_type", "warmup_steps", "weight_decay", "seed", "bf16", "fp16", "world_size"),
)
"""The training arguments that a record names."""


def describe(
    args: Any, coreset: dict[str, Any], model: Any, sources: Sources, small: frozenset[int], started: str
) -> dict[str, Any]:
    """The content of `corebatch.json`.

    Args:
        args: the TrainingArguments.
        coreset: plain values of the CoresetConfig.
        model: the model without its wrappers.
        sources: of the train set.
        small: the sources that may be kept whole.
        started: when, in ISO 8601.
    """
    total = max(sum(sources.counts.values()), 1)
    found = versions()
    return {
        "corebatch": found.get("corebatch", "unknown"),
        "coreset": coreset,
        "training": {key: getattr(args, key) for key in RECORDED if hasattr(args, key)},
        "model": getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__,
        "sources": {
            sources.names[s]: {"examples": count, "share": count / total, "small": s in small}
            for s, count in sorted(sources.counts.items())
        },
        "method_note": kept_note(sources, small),
        "hardware": hardware(),
        "versions": found,
        "started": started,
    }


def kept_note(sources: Sources, small: frozenset[int]) -> str:
    """Whether the mixture that is trained is the one that is drawn, in a sentence."""
    if not small:
        return "No source is kept whole: the mixture that is trained is the one that is drawn."
    kept = ", ".join(sources.names[s] for s in sorted(small))
    return f"Small sources are kept whole ({kept}), which changes the mixture that is trained."


def per_source(ids: Tensor, names: Any) -> dict[str, int]:
    """How many rows each source has, by name, in order of the source numbers."""
    return {names[source]: count for source, count in sorted(Counter(ids.tolist()).items())}


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("corebatch", "torch", "transformers", "accelerate", "peft", "trl", "datasets", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The machine, in the words that a report shows."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_cores": psutil.cpu_count(logical=True),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()
