"""One run of one arm: trains, counts what it drew and trained, and measures held-out loss on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from corebatch.bench.runs.arms import Arm
from corebatch.bench.runs.comparison import MEANS
from corebatch.bench.runs.costs import StepCost, row_tokens
from corebatch.bench.runs.from_config import RunData
from corebatch.optimizers import training_arguments
from corebatch.record.step_log import LOG
from corebatch.report.reading import read_steps
from corebatch.sampling.collating import SourceCollator
from corebatch.scratch import temporary_folder
from corebatch.trainer import CoresetTrainer
from corebatch.trainer.budget import steps_of_rows
from corebatch.trainer.parts import unfolded

ORDER_EVERY = 64
"""After how many drawn examples the running hash of their order is kept."""


@dataclass(kw_only=True)
class Counts:
    """What a run drew, scored and trained. Tokens are counted without padding. `updates`: optimizer steps, of which a
    batch that grows makes fewer out of the rows of as many configured steps. `positions`: of each of them, scored and
    trained, padding included."""

    updates: int = 0
    rows_drawn: int = 0
    rows_trained: int = 0
    tokens_drawn: int = 0
    tokens_trained: int = 0
    tokens_scored: int = 0
    order: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


class WatchedCollator:
    """A collator that notes the rows that pass, in order: a hash of each, and its tokens."""

    def __init__(self, inner: Callable[[Any], dict[str, Tensor]]) -> None:
        self.inner = inner
        self.rows: list[tuple[bytes, int]] = []
        self.pad_token_id = getattr(getattr(inner, "tokenizer", None), "pad_token_id", None)

    def __call__(self, rows: Any) -> dict[str, Tensor]:
        for row in rows:
            ids = [int(token) for token in row["input_ids"]]
            self.rows.append((hashlib.sha256(json.dumps(ids).encode()).digest(), len(ids)))
        return self.inner(rows)

    def order(self, count: int) -> list[str]:
        """Running hash of the first `count` rows, after every `ORDER_EVERY`."""
        running, found = hashlib.sha256(), []
        for number, (digest, _) in enumerate(self.rows[:count], 1):
            running.update(digest)
            if number % ORDER_EVERY == 0:
                found.append(running.hexdigest()[:12])
        return found


class CountingTrainer(CoresetTrainer):
    """Counts the rows and tokens that go into training, where the Trainer takes them."""

    counts: Counts
    handle_signals = False  # a run of a comparison is made anew, and has no checkpoint to go on from

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, items = super().get_batch_samples(*args, **kwargs)
        parts = unfolded(batches)
        if parts:
            scored = self._recorder.step.get("positions_scored") if self.coreset.takes_part else 0
            self.counts.positions.append((scored or 0) + sum(part["input_ids"].numel() for part in parts))
        for batch in parts:
            weights = batch.get("loss_weights")
            tokens = row_tokens(batch)
            if weights is not None and weights.ndim == 1:  # a row of weight 0 fills an empty place
                tokens = [n for n, weight in zip(tokens, weights.tolist(), strict=True) if weight != 0]
            self.counts.rows_trained += len(tokens)
            self.counts.tokens_trained += sum(tokens)
        return batches, items


class _Curve(TrainerCallback):
    """Measures once the rows of so many configured steps are trained. `position`: gives how many were."""

    def __init__(self, at: Sequence[int], measure: Callable[[int], None], position: Callable[[], int]) -> None:
        self.at, self.measure, self.position, self.before = at, measure, position, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        before, self.before = self.before, self.position()
        if any(before < point <= self.before for point in self.at):
            self.measure(self.before)


class _Begins(TrainerCallback):
    """Forgets the rows that passed before the first step: an objective by source has all of them counted."""

    def __init__(self, watched: WatchedCollator) -> None:
        self.watched = watched

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.watched.rows.clear()


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """How long a run is, and the values that it has of what is tuned. `learning_rate`, `adam_beta2`: None leaves the
    config's."""

    steps: int
    seed: int
    learning_rate: float | None = None
    adam_beta2: float | None = None


def arguments(arm: Arm, folder: str, schedule: RunPlan) -> TrainingArguments:
    """The arm's training arguments for one run: nothing is saved, logged or evaluated by the Trainer itself."""
    values = dict(arm.training)
    for key in ("eval_steps", "save_steps", "num_train_epochs", "resume_from_checkpoint", "metric_for_best_model"):
        values.pop(key, None)
    values |= {
        "output_dir": folder,
        "per_device_train_batch_size": arm.micro_batch,
        "gradient_accumulation_steps": arm.accumulation,
        "max_steps": schedule.steps,
        "seed": schedule.seed,
        "data_seed": schedule.seed,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,  # the collator counts, in this process
    }
    if schedule.learning_rate is not None:
        values["learning_rate"] = schedule.learning_rate
    if schedule.adam_beta2 is not None:
        values["adam_beta2"] = schedule.adam_beta2
    made: TrainingArguments = training_arguments(TrainingArguments, **values)
    return made


@contextmanager
def trainer_of(
    arm: Arm,
    data: RunData,
    schedule: RunPlan,
    kind: type[CountingTrainer] = CountingTrainer,
    dataset: Any = None,
    callbacks: Callable[[Any, Callable[[], int]], list[TrainerCallback]] | None = None,
) -> Iterator[tuple[Any, WatchedCollator]]:
    """A trainer of the arm, and the collator that sees its rows; its folder goes in the end."""
    set_seed(schedule.seed)
    model = data.make_model()
    watched = WatchedCollator(data.collate)

    def position() -> int:
        return steps_of_rows(trainer)

    with temporary_folder("corebatch-compare-") as folder:
        trainer: Any = kind(
            model=model,
            args=arguments(arm, folder, schedule),
            train_dataset=data.train if dataset is None else dataset,
            data_collator=watched,
            processing_class=data.tokenizer,
            coreset=dataclasses.replace(arm.coreset, seed=schedule.seed),
            target_dataset=None if arm.coreset.target is None else data.target,
            callbacks=[_Begins(watched), *(callbacks(model, position) if callbacks is not None else ())],
        )
        trainer.target_collator = SourceCollator(data.collate, arm.coreset.source_column)
        trainer.remove_callback(PrinterCallback)
        trainer.counts = Counts()
        yield trainer, watched


def train_arm(
    arm: Arm,
    data: RunData,
    schedule: RunPlan,
    *,
    dataset: Any = None,
    callbacks: Callable[[Any, Callable[[], int]], list[TrainerCallback]] | None = None,
) -> tuple[Any, Counts]:
    """The trained model and what was counted. `callbacks`: made of the model, and of what gives the number of
    configured steps whose rows were drawn."""
    with trainer_of(arm, data, schedule, dataset=dataset, callbacks=callbacks) as (trainer, watched):
        counts: Counts = trainer.counts
        trainer.train()
        if arm.coreset.takes_part:
            lines = read_steps(Path(trainer.args.output_dir) / LOG)
            counts.rows_drawn = sum(line.pool_examples for line in lines)
            counts.tokens_scored = sum(line.tokens_scored or 0 for line in lines)
        else:
            counts.rows_drawn = counts.rows_trained
        reached, counts.updates = steps_of_rows(trainer), int(trainer.state.global_step)
    counts.tokens_drawn = sum(tokens for _, tokens in watched.rows[: counts.rows_drawn])
    counts.order = watched.order(counts.rows_drawn)
    if reached != schedule.steps:
        raise RuntimeError(f"The run should have the rows of {schedule.steps} steps. Found those of {reached}.")
    return trainer.model, counts


def points(steps: int, evaluations: int) -> list[int]:
    """The steps after which held-out loss is measured: evenly spaced, the last one among them."""
    return sorted({max(1, round(steps * k / evaluations)) for k in range(1, evaluations + 1)})


def run_arm(
    arm: Arm, data: RunData, schedule: RunPlan, *, seconds: StepCost, flops: StepCost, evaluations: int
) -> dict[str, Any]:
    """A whole run as the measured part of its line."""
    steps = schedule.steps
    curve: list[dict[str, Any]] = []
    before = time.perf_counter()

    def measure(model: Any, position: Callable[[], int]) -> list[TrainerCallback]:
        def at(step: int) -> None:
            cost = {"step": step, "seconds": seconds.of(step), "flops": flops.of(step)}
            curve.append({**cost, **data.curve.loss(model)})

        return [_Curve(points(steps, evaluations), at, position)]

    model, counts = train_arm(arm, data, schedule, callbacks=measure)
    final = data.final.loss(model)
    if data.evaluate_tasks is not None:
        final |= data.evaluate_tasks(model)
    for point in curve:  # tokens a step are those of the run, on average
        point["tokens_trained"] = round(counts.tokens_trained * point["step"] / steps)
    return {
        "steps": steps,
        **{key: value for key, value in dataclasses.asdict(counts).items() if key not in ("order", "positions")},
        "positions": sum(counts.positions),
        "flops": flops.of(steps),
        "seconds": seconds.of(steps),
        "wall_seconds": round(time.perf_counter() - before, 3),
        "order": counts.order,
        "curve": curve,
        "final": final,
    }


def tune_arm(arm: Arm, data: RunData, schedule: RunPlan) -> dict[str, Any]:
    """Held-out loss on the rows for tuning after a run of this length."""
    model, _ = train_arm(arm, data, schedule)
    return {key: value for key, value in data.tune.loss(model).items() if key != "sources"}


def pilot_arm(arm: Arm, data: RunData, schedule: RunPlan) -> dict[str, Any]:
    """Held-out loss after a run of this length, on all rows for the final evaluation and on parts of them."""
    before = time.perf_counter()
    model, _ = train_arm(arm, data, schedule)
    final = data.final.loss(model)
    wall = round(time.perf_counter() - before, 3)
    losses = [part.loss(model) for part in data.parts()]
    return {"final": final, "parts": [{mean: loss[mean] for mean in MEANS} for loss in losses], "wall_seconds": wall}
