"""One arm of `corebatch bench step`, through the real trainer."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from corebatch.bench.live_bytes import LiveBytes
from corebatch.bench.steps.plan import (
    ACCUMULATION,
    COREBATCH,
    LEARNING_RATE,
    OVERHEAD,
    SMALL,
    SORTED,
    Shape,
    StepArm,
    StepSettings,
)
from corebatch.model.rows import trained_tokens
from corebatch.record.step_log import LOG
from corebatch.report.reading import read_steps
from corebatch.scratch import temporary_folder
from corebatch.trainer import CoresetTrainer
from corebatch.trainer.parts import unfolded
from corebatch.types import IGNORED


@dataclass(frozen=True, kw_only=True)
class ArmRound:
    """One arm in one round.

    Attributes:
        seconds: of a measured step, median.
        tokens, labels, cells: a measured step trains, means: attended tokens, trained labels, tokens with padding.
        largest: tokens with padding of the largest micro-batch of all measured steps.
        scored: attended tokens scored a step, mean.
        score_share, overhead_share: of a measured step's time, for corebatch arms: scoring; OVERHEAD.
        padding_scored, mfu: the share of padding in what is scored, and of the device's peak FLOPs, as the run tells.
        reuse_mb: kept of the scoring forward for training, MB (2^20 bytes), where the run tells.
        start_bytes, peak_bytes: memory at a step's start and at its peak, where it was measured.
    """

    seconds: float
    tokens: float
    labels: float
    cells: float
    largest: float
    scored: float = 0.0
    score_share: float | None = None
    overhead_share: float | None = None
    padding_scored: float | None = None
    mfu: float | None = None
    reuse_mb: float | None = None
    start_bytes: int | None = None
    peak_bytes: int | None = None


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Random token ids of the drawn shapes."""

    def __init__(self, shapes: Sequence[Shape], count: int, vocabulary: int, seed: int) -> None:
        self.shapes = random.Random(seed).choices(shapes, k=count)
        ids = torch.randint(1, vocabulary, (sum(s.tokens for s in self.shapes),), generator=_generator(seed))
        self.ids = ids.split([shape.tokens for shape in self.shapes])

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        shape, ids = self.shapes[index], self.ids[index]
        labels = ids.clone()
        labels[: shape.tokens - shape.trained] = IGNORED
        return {"input_ids": ids, "labels": labels}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _collate(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Padded on the right: LongTensor [B, T] each."""
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORED),
        "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
    }


class _Counted(Trainer):
    """A Trainer that counts what it trains: (tokens, labels, cells, cells of the largest micro-batch) for each step, on
    the device until they are read. It stands before CoresetMixin's override, so it sees what is trained. It takes rows
    in their order, so that all arms of a round take the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counts: list[list[Tensor | int]] = []

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *args: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, *args)
        if batches:
            parts = unfolded(batches)
            masks = [part["attention_mask"].sum() for part in parts]
            labels = [trained_tokens(part["labels"]).sum() for part in parts]
            cells = [part["input_ids"].numel() for part in parts]
            self.counts.append([torch.stack(masks).sum(), torch.stack(labels).sum(), sum(cells), max(cells)])
        return batches, items

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return SequentialSampler(self.train_dataset)


class _CorebatchTrainer(_Counted, CoresetTrainer):
    pass


TRAINERS = {ACCUMULATION: _Counted, SORTED: _CorebatchTrainer, SMALL: _Counted, COREBATCH: _CorebatchTrainer}


class _Clock(TrainerCallback):
    """Times from the end of a step to the end of the next, loading and scoring included, and memory.

    On a GPU the allocator tells the peak of each step. On the CPU `live` counts through the steps after the measured
    ones, which are not timed, since counting slows them.

    Args:
        steps: measured, after one that is not.
        live: counts from there to the end of training; None on a GPU and where memory is not asked for.
    """

    def __init__(self, steps: int, live: LiveBytes | None) -> None:
        self.steps, self.live = steps, live
        self.ends: list[float] = []
        self.peaks: list[int] = []
        self.start_bytes: int | None = None
        self._counting = False

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.synchronize()
            self.peaks.append(torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
            self.start_bytes = torch.cuda.memory_allocated()
        if state.global_step <= 1 + self.steps:
            self.ends.append(time.perf_counter())
        if self.live is not None and state.global_step == 1 + self.steps:
            self.live.track(_alive(given["model"], given["optimizer"]))
            self.start_bytes = self.live.live_bytes
            self.live.__enter__()
            self._counting = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the counting, also of a step that failed."""
        if self._counting and self.live is not None:
            self.live.__exit__(None, None, None)
            self._counting = False

    @property
    def seconds(self) -> list[float]:
        """Of each measured step."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def _alive(model: Any, optimizer: Any) -> Iterator[Any]:
    for parameter in model.parameters():
        yield parameter
        yield parameter.grad
    yield from model.buffers()
    for state in optimizer.state.values():
        yield from state.values()


def run_arm(arm: StepArm, model: Any, rows: Any, settings: StepSettings, *, number: int, memory: bool) -> ArmRound:
    """Trains one warm-up step and the measured ones; the model's weights move a little.

    Args:
        rows: taken in their order.
        number: of the round.
        memory: whether the peak is measured too.
    """
    gpu = torch.cuda.is_available()
    steps = arm.steps(settings.steps)
    live = LiveBytes() if memory and not gpu else None
    clock = _Clock(steps, live)
    with temporary_folder("corebatch-bench-") as folder:
        extra_steps = 0 if live is None else arm.period
        args = _arguments(arm, settings, folder, steps=1 + steps + extra_steps, seed=settings.seed + number)
        extra = {} if arm.coreset is None else {"coreset": arm.coreset}
        trainer: Any = None
        try:
            trainer = TRAINERS[arm.kind](
                model=model, args=args, train_dataset=rows, data_collator=_collate, callbacks=[clock], **extra
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        finally:
            clock.close()
            model.zero_grad(set_to_none=True)
            if vars(model).pop("_original_forward", None) is not None:
                vars(model).pop("forward")  # Accelerate wraps it for autocast, once more in every run
        record = _record(Path(folder), steps)
        counted = trainer.counts[1 : 1 + steps]
        tokens, labels, cells = (statistics.mean(float(count[part]) for count in counted) for part in range(3))
        largest = max(float(count[3]) for count in counted)
    del trainer
    gc.collect()
    seconds = [statistics.mean(clock.seconds[start : start + arm.period]) for start in range(0, steps, arm.period)]
    peaks = [live.peak_bytes] if live is not None else clock.peaks[1:] if gpu and memory else []
    phases = record.pop("memory_mb", [])
    if gpu and memory:  # the recorder of a corebatch run starts the allocator's peak anew in every phase
        peaks += [int(mb * 2**20) for mb in phases]
    return ArmRound(
        seconds=statistics.median(seconds),
        tokens=tokens,
        labels=labels,
        cells=cells,
        largest=largest,
        start_bytes=clock.start_bytes if memory else None,
        peak_bytes=max(peaks) if peaks else None,
        **record,
    )


def _arguments(arm: StepArm, settings: StepSettings, folder: str, *, steps: int, seed: int) -> TrainingArguments:
    gpu = torch.cuda.is_available()
    return TrainingArguments(
        folder,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.large // arm.ratio // settings.micro_batch,
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        **_checkpointing(settings.checkpointing),
        bf16=settings.precision == "bfloat16",
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=seed,
    )


def mean_known(values: Iterable[float | None]) -> float | None:
    """Of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return round(statistics.mean(known), 4) if known else None


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """As TrainingArguments spells it: transformers 5 renamed the two keys."""
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if wanted else {}


def _record(folder: Path, steps: int) -> dict[str, Any]:
    """What `selection.jsonl` tells of the measured steps; nothing for a plain run."""
    path = folder / LOG
    if not path.is_file():
        return {}
    lines = read_steps(path)
    measured = lines[1 : 1 + steps]
    total = sum(sum(line.ms.values()) for line in measured)
    return {
        "scored": statistics.mean(line.tokens_scored or 0 for line in measured),
        "score_share": sum(line.ms.get("score", 0.0) for line in measured) / total,
        "overhead_share": sum(line.ms.get(phase, 0.0) for line in measured for phase in OVERHEAD) / total,
        "padding_scored": mean_known(line.padding_scored for line in measured),
        "mfu": mean_known(line.mfu for line in measured),
        "reuse_mb": lines[-1].reuse_mb,
        "memory_mb": [mb for line in measured for mb in line.memory_mb.values()],
    }
