"""The first step of a run, for `validate`: as `train` makes it, without saving and without trackers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from corebatch.evaluation import evaluate
from corebatch.launch.prepare import PreparedRun
from corebatch.record.example_counts import ROWS
from corebatch.record.step_log import LOG
from corebatch.seeds import random_states

RECORD = (LOG, ROWS)


class StopAfterOne(TrainerCallback):
    """Ends training after one optimizer step; nothing is saved, and no epoch is evaluated that did not end."""

    def __init__(self) -> None:
        self._began = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = False
        control.should_training_stop |= state.global_step > self._began

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = control.should_evaluate = control.should_log = False


def make_first_step(run: PreparedRun, output_dir: Path, resume: str | None) -> float | None:
    """Measures a little of every task and held-out set, makes one step, and returns its loss; None where the run that
    goes on has made all its steps.

    Args:
        run: with a temporary folder as output_dir.
        output_dir: of the run that is rehearsed.
        resume: the checkpoint that it goes on from, or None.

    Raises:
        CorebatchError: what `train` would raise before its second step.
    """
    trainer = run.trainer
    for task in run.tasks.tasks:
        with random_states():
            evaluate(trainer.model, run.tokenizer, task, limit=1, progress=False)
    _keep_quiet(trainer)
    if resume is not None:
        for name in RECORD:  # the record that the run goes on with
            if (output_dir / name).is_file():
                shutil.copyfile(output_dir / name, Path(trainer.args.output_dir) / name)
    result = trainer.train(resume_from_checkpoint=resume)
    if run.held_out is not None:
        trainer.evaluate(_beginnings(trainer.eval_dataset, trainer.args.per_device_eval_batch_size))
    return float(result.training_loss) if result.metrics else None


def _keep_quiet(trainer: Any) -> None:
    """No trackers, no bar, no checkpoint."""
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__module__.startswith("transformers.integrations"):
            trainer.remove_callback(callback)
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StopAfterOne())
    trainer.args.load_best_model_at_end = False  # none is saved
    trainer._save_checkpoint = lambda *_, **__: None


def _beginnings(sets: Any, rows: int) -> Any:
    """The first rows of each held-out set."""
    if isinstance(sets, dict):
        return {name: _beginnings(one, rows) for name, one in sets.items()}
    return sets.select(range(min(rows, len(sets))))
