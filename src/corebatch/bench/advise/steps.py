"""Steps of the config's own run, through the trainer that `train` would make: how long they take, and on what."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from corebatch.batch.budget import CONSTANT
from corebatch.bench.advise.probe import Probe
from corebatch.bench.advise.row_gradients import weights_kept
from corebatch.bench.advise.shapes import Dims
from corebatch.config.building import SOURCE_COLUMN, read_target
from corebatch.launch.held_out import TrainerBySource
from corebatch.mixture import row_lengths
from corebatch.model.flops import finish
from corebatch.model.rows import attended
from corebatch.scratch import temporary_folder
from corebatch.trainer.parts import unfolded

MOST = 3
"""Steps that are measured, at most."""
NOT_OF_A_MEASUREMENT: dict[str, Any] = {
    **{"save_strategy": "no", "eval_strategy": "no", "logging_strategy": "no", "eval_on_start": False},
    **{"load_best_model_at_end": False, "push_to_hub": False, "report_to": [], "disable_tqdm": True},
    **{"resume_from_checkpoint": None, "lr_scheduler_type": "constant", "lr_scheduler_kwargs": None},
    "torch_compile": False,  # which would take longer than all else
}
"""Keys of TrainingArguments that are set otherwise than in the config."""


@dataclass(kw_only=True)
class StepTimes:
    """Of the steps that were measured.

    Attributes:
        seconds: of each.
        load, train, optimizer: seconds of each: until its micro-batches are there (drawn, scored, chosen, put
            together); forward and backward; the update of the weights.
        short, short_step: seconds of a step of the shortest row before them, forward and backward and in all; None
            where there was none.
        short_dims: rows and positions of that step's micro-batches.
        dims: of those of each.
        tokens: attended, of each.
        optimizer_bytes: of the optimizer's state.
    """

    seconds: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    optimizer: list[float] = field(default_factory=list)
    short: float | None = None
    short_step: float | None = None
    short_dims: list[Dims] = field(default_factory=list)
    dims: list[list[Dims]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    optimizer_bytes: int = 0

    @property
    def rest(self) -> float:
        """Seconds of a step, in the mean, that are neither forward nor backward."""
        return (sum(self.seconds) - sum(self.train)) / len(self.seconds)


class _Sequential(Trainer):
    """Takes rows in their order, and counts what is trained; it stands before CoresetMixin, so it sees what that hands
    on."""

    counted: list[tuple[list[Dims], int]]
    in_order = True

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *args: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, *args)
        parts = unfolded(batches)
        if parts:
            dims = [(int(part["labels"].shape[0]), int(part["labels"].shape[1])) for part in parts]
            self.counted.append((dims, sum(int(attended(part).sum()) for part in parts)))
        return batches, items

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        if self.in_order:
            return SequentialSampler(self.train_dataset)
        return super()._get_train_sampler(*args, **kwargs)


class _Advised(_Sequential, TrainerBySource):
    handle_signals = False


class _Marks(TrainerCallback):
    """Marks the moments of a step; ends training when the time is over."""

    def __init__(self, probe: Probe, in_order: bool) -> None:
        self.probe, self.made, self.in_order = probe, StepTimes(), in_order
        self.last = self.begun = self.trained = self.moved = 0.0

    def _now(self) -> float:
        finish(self.probe.device)
        return time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begun = self._now()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trained = self._now()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.moved = self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        now, made = self._now(), self.made
        if state.global_step == 2 and self.in_order:
            made.short, made.short_step = self.trained - self.begun, now - self.last
        elif state.global_step > 1:
            made.seconds.append(now - self.last)
            made.load.append(self.begun - self.last)
            made.train.append(self.trained - self.begun)
            made.optimizer.append(self.moved - self.trained)
            longest = max(made.seconds)
            control.should_training_stop |= self.probe.seconds_left < longest
        made.optimizer_bytes = _state_bytes(given.get("optimizer"))
        self.last = self._now()


def _state_bytes(optimizer: Any) -> int:
    states = getattr(optimizer, "state", None) or {}
    return sum(
        value.numel() * value.element_size()
        for state in states.values()
        for value in (state.values() if isinstance(state, dict) else ())
        if isinstance(value, Tensor)
    )


def make_steps(probe: Probe, rows: Sequence[int] = (), steps: int = MOST) -> StepTimes:
    """Makes two steps of the shortest row, the first of which makes what is made once, then some as the config would
    (its first ones, where the batch grows), and puts the weights back.

    Where another one than the Trainer decides on the order of rows, one step of rows as they come is made before.

    Args:
        rows: numbers in the mixture, in the loader's order; by default the sample's.
        steps: that are measured, at most.

    Raises:
        CorebatchError: what `train` would raise.
    """
    settings, dataset = probe.settings, probe.mixture.dataset
    coreset = dataclasses.replace(settings.coreset, source_column=SOURCE_COLUMN, budget=CONSTANT)
    in_order = coreset.sampling is None and coreset.by_length is None
    if in_order:
        drawn = probe.batch_size * coreset.pool_factor
        shortest = int(row_lengths(dataset).argmin())
        order = rows or probe.order
        taken = [shortest] * (2 * drawn) + [order[i % len(order)] for i in range(steps * drawn)]
        dataset = Dataset.from_dict(dataset[taken])
    before = 2 if in_order else 1
    marks = _Marks(probe, in_order)
    with temporary_folder("corebatch-advise-") as folder, weights_kept(probe.model), own_forward(probe.model):
        own = {**NOT_OF_A_MEASUREMENT, "max_steps": before + steps, "output_dir": folder}
        args = TrainingArguments(**{**settings.training, **own})
        trainer: Any = _Advised(
            model=probe.model,
            args=args,
            train_dataset=dataset,
            data_collator=probe.collate,
            processing_class=probe.tokenizer,
            coreset=coreset,
            target_dataset=read_target(settings, probe.tokenizer),
            callbacks=[marks],
        )
        trainer.in_order, trainer.counted = in_order, []
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.train()
    made = marks.made
    counted = trainer.counted[before : before + len(made.seconds)]
    made.dims, made.tokens = [dims for dims, _ in counted], [tokens for _, tokens in counted]
    made.short_dims = trainer.counted[1][0] if in_order else []
    return made


@contextmanager
def own_forward(model: Any) -> Iterator[None]:
    """Afterwards the model has the forward that it had: Accelerate wraps it for autocast, once more in every run."""
    forward = vars(model).get("forward")
    try:
        yield
    finally:
        for name in ("_original_forward", "forward"):
            vars(model).pop(name, None)
        if forward is not None:
            model.forward = forward
