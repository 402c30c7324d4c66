"""What a run leaves beside the Trainer's own files: `corebatch.json` once; `selection.jsonl` and `chosen.jsonl`, a line
a step each; `examples.json` when training ends."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from corebatch.batch.small_batch import SmallBatch
from corebatch.errors import NonFiniteError
from corebatch.files import write_json
from corebatch.model.flops import ModelFlops, Peak, peak_flops
from corebatch.model.model_flops import flops_or_reason, model_flops
from corebatch.record.example_counts import write_examples, write_sources
from corebatch.record.phases import Phases, clock_for
from corebatch.record.provenance import now as now
from corebatch.record.run_file import RUN
from corebatch.record.saving import go_on_from, log_failed
from corebatch.record.source_losses import logged_losses, logged_shares
from corebatch.record.step_log import LOG, StepLog, TimedLine, start_log
from corebatch.step_line import Distance, GradientError

logger = logging.getLogger(__name__)

SHOWN = 32
"""Example ids that an error names at most."""


class Recorder(TrainerCallback):
    """Writes the record of a run, on rank 0 alone; times training and the optimizer on every rank.

    Args:
        trainer: whose run it is.
        check: called before each optimizer step, with the trainer and whether the step's batches were chosen.
    """

    def __init__(self, trainer: Any, check: Callable[[Any, bool], None] = lambda *_: None) -> None:
        self._trainer, self._check = trainer, check
        self.step: dict[str, Any] | None = None
        self._clock = clock_for(trainer.args.device)
        self.phases = Phases(self._clock)
        self.losses: list[Tensor] = []
        self.chosen: list[int] = []
        self.passed: list[int] = []
        self.weights: list[float] | None = None
        self._loss: float | None = None
        self._log = StepLog(None)
        self._since_log: list[TimedLine] = []
        self._began = time.perf_counter()
        self._flops: ModelFlops | None = None
        self._peak: Peak | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        model = self._trainer._run.model()
        self._flops = model_flops(model)  # until a row has shown what runs
        self._peak = peak_flops(args.device, _training_type(args, model))
        self.step, self._since_log, self.losses = None, [], []
        with self._trainer._run.ranks.together(f"Cutting {LOG}"):
            if state.is_world_process_zero:
                start_log(self._trainer._run.folder, state.global_step)
        self._log = StepLog(self._trainer._run.folder / LOG if state.is_world_process_zero else None)
        # Training may also end by an error that no callback hears of: what is held back is written when the recorder
        # goes, or the process.
        weakref.finalize(self, self._log.flush)
        with self._trainer._run.ranks.together(f"Writing {RUN}"):
            if state.is_world_process_zero:
                folder = self._trainer._run.folder
                folder.mkdir(parents=True, exist_ok=True)
                run = self._trainer._run.record() | {"peak_flops": dataclasses.asdict(self._peak)}
                try:
                    write_json(folder / RUN, run)
                    tagged = self._trainer._tagged.of
                    dataset, sources = tagged(self._trainer.train_dataset, self._trainer.coreset, first=False)
                    write_sources(folder, dataset, len(sources.counts))
                except OSError as error:
                    raise log_failed(error, folder / RUN) from error
        self._began = time.perf_counter()

    def count_flops(self, model: Any, batch: Mapping[str, Tensor] | None) -> tuple[ModelFlops | None, str]:
        """What a token costs, or why it is not known; on every rank alike, since a row of the batch is traced."""
        self._flops, reason = flops_or_reason(model, batch)
        if reason and self._trainer.is_world_process_zero():
            logger.warning("There is no model FLOPs utilisation (mfu) of this model: %s.", reason)
        return self._flops, reason

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raises, on every rank alike and before any weight is moved, NonFiniteError for a loss that is not finite,
        and CheckpointError where the last step's line could not be written."""
        self._check(self._trainer, self.step is not None)
        self.phases.end("train")
        self.check_loss(state.global_step)

    def check_loss(self, step: int) -> None:
        """Waits for the step's loss and raises NonFiniteError if it is not finite. Where weights are updated inside
        backward it is called before that, and the wait is one more of the device."""
        self._loss = None
        if self.losses:
            loss, trained = torch.stack(self.losses).sum(), self._trainer._run.step.losses
            noise: Tensor = self._trainer._run.noise.message(loss.device)
            of_rows = loss.new_zeros(0) if trained is None else trained.message(loss.device)
            of_rows = torch.cat([noise.to(of_rows), of_rows]) if len(of_rows) else noise
            unwritten = loss.new_tensor([float(self._log.failure is not None)])
            numbers = torch.cat([loss.reshape(1).to(of_rows.dtype), unwritten.to(of_rows.dtype), of_rows])
            if self._trainer.accelerator.num_processes > 1:
                numbers = self._trainer.accelerator.reduce(numbers, reduction="sum")
            total, failures, *each = numbers.tolist()
            if failures:
                self.raise_unwritten()
            self._loss = total / self._trainer.accelerator.num_processes
            self._trainer._run.noise.settle(each[: len(noise)])
            if trained is not None:
                trained.settle(each[len(noise) :])
            if not math.isfinite(self._loss):
                self.flush()
                raise NonFiniteError(
                    f"At step {step + 1} the loss of the small batch should be finite. "
                    f"Found {self._loss}. No weight was moved. {self.trained_rows()}"
                    + go_on_from(self._trainer._run.folder)
                )

    def trained_rows(self) -> str:
        """In a sentence or two, which rows a loss that is not finite comes from."""
        if not self.chosen:
            return ""
        shown = ", ".join(map(str, self.chosen[:SHOWN])) + (", ..." if len(self.chosen) > SHOWN else "")
        none = self.step is not None and self.step.get("labels_trained") == 0
        return f"It was made of examples {shown} of the train set{', none of which has a trained token' * none}. "

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.phases.end("optimizer")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.step is None:
            return
        values = {
            "step": state.global_step,
            "epoch": state.epoch,
            **self.step,
            "padding_scored": _padding(self.step.get("tokens_scored"), self.step.get("positions_scored")),
            "padding_trained": _padding(self.step.get("tokens_trained"), self.step.get("positions_trained")),
            "train_loss": self._loss,
            "seconds": round(time.perf_counter() - self._began, 3),
        }
        if found := self.step.get("gradient_error"):
            values["gradient_error"] = GradientError(**{**found, "random": Distance(**found["random"])})
        rows = {"step": state.global_step, "chosen": self.chosen}
        if self.weights is not None:
            rows["weights"] = [float(f"{weight:.4g}") for weight in self.weights]
        if (losses := self._trainer._run.step.losses) is not None:
            values |= losses.line(self._trainer._run.method.source_names)
            rows["losses"] = losses.rows
        rows["passed"] = self.passed
        values |= self._trainer._run.noise.line()
        line = TimedLine(values, self.phases, self._seconds_at_peak(self.step), rows)
        self.step, self.losses = None, []
        self._since_log.append(line)
        self._log.add(line)
        self.phases = Phases(self._clock)

    def note(self, small: SmallBatch) -> None:
        """What this step trains, as far as it is known before training."""
        self.step, self.weights = small.line, small.selected
        self.chosen, self.passed = small.chosen, small.passed

    def flush(self) -> None:
        """Writes the lines that are held back until the device has finished their steps; waits for it."""
        self._log.flush()

    def before_save(self) -> None:
        """Writes all lines to the disk: a complete checkpoint has a line for each of its steps. Raises CheckpointError:
        on every rank, a line could not be written."""
        self.flush()
        self._log.sync()
        self.raise_unwritten()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.flush()
        if self._log.path is not None and self._log.failure is None:
            write_examples(self._log.path.parent, self._trainer)
        self.raise_unwritten()

    def raise_unwritten(self) -> None:
        """Raises CheckpointError on every rank if a line could not be written; all ranks call it."""
        self._trainer._run.ranks.report(self._log.failure, doing=f"Writing {LOG}")

    def take_means(self) -> dict[str, float]:
        """What the Trainer's log shows beside its own numbers: means over the steps since the last call, and the most
        memory by phase. Times are means over those steps that the device has finished."""
        lines, self._since_log = self._since_log, []
        if not lines:
            return {}
        done = [line.timed() for line in lines]
        steps = [line.line() for line in lines]
        timed = [step for step, known in zip(steps, done, strict=True) if known]
        means: dict[str, float] = {}
        for key in ("pool_loss", "chosen_loss"):
            means |= _mean(key, [getattr(step, key) for step in steps])
        means |= logged_losses(steps, self._trainer.args.report_to)
        means |= logged_shares(steps, self._trainer.args.report_to)
        seconds = sum(sum(step.ms.values()) for step in timed) / 1000
        for key in ("tokens_scored", "tokens_trained"):
            means[key] = sum(getattr(step, key) for step in steps) / len(steps)
            if timed:
                means[f"{key}_per_second"] = sum(getattr(step, key) for step in timed) / max(seconds, 1e-9)
        for key in ("padding_scored", "padding_trained"):
            means |= _mean(key, [getattr(step, key) for step in steps], 5)
        if self._trainer.coreset.budget is not None:
            means["chosen_examples"] = steps[-1].chosen_examples
        if any(step.weight_max not in (None, 1.0) for step in steps):
            means |= _mean("effective_sample_size", [step.effective_sample_size for step in steps], 5)
            means["weight_max"] = max(step.weight_max or 0.0 for step in steps)
        means |= _mean("carried", [step.carried for step in steps], 5)
        scales = [step.noise_scale for step in steps if step.noise_scale is not None]
        means |= _mean("noise/scale", [*scales[-1:]], 6)
        measured = [step.gradient_error for step in steps if step.gradient_error is not None]
        for key in ("error", "cosine", "length"):
            means |= _mean(f"gradient_{key}", [getattr(found, key) for found in measured], 6)
        means |= _mean("gradient_error_random", [found.random.error for found in measured], 6)
        means |= _mean("mfu", [step.mfu for step in timed], 5)
        for phase in dict.fromkeys(phase for step in timed for phase in step.ms):
            means |= _mean(f"ms_{phase}", [step.ms.get(phase) for step in timed], 5)
        for phase in dict.fromkeys(phase for step in steps for phase in step.memory_mb):
            means[f"memory_mb_{phase}"] = max(step.memory_mb.get(phase, 0.0) for step in steps)
        return means

    def _seconds_at_peak(self, step: dict[str, Any]) -> float | None:
        if self._flops is None or self._peak is None:
            return None
        flops = self._flops.step(
            scored=step["tokens_scored"],
            scored_rows=step.get("examples_scored", step["pool_examples"]),
            trained=step["tokens_trained"],
            trained_rows=step["chosen_examples"],
        )
        return flops / (self._trainer.accelerator.num_processes * self._peak.value)


def _training_type(args: Any, model: Any) -> torch.dtype:
    """What the model's matrices are multiplied in: the autocast type, else the weights' own."""
    if args.bf16 or args.fp16:
        return torch.bfloat16 if args.bf16 else torch.float16
    types = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return next(types, torch.float32)


def _padding(tokens: int | None, positions: int | None) -> float | None:
    """The share of positions that hold no token; None where they were not counted, or there are none."""
    return round(1 - tokens / positions, 4) if tokens is not None and positions else None


def _mean(key: str, values: list[float | None], digits: int = 17) -> dict[str, float]:
    """The mean under its key, over what is known, to so many digits that count; nothing where nothing is."""
    known = [value for value in values if value is not None]
    return {key: float(f"{sum(known) / len(known):.{digits}g}")} if known else {}
