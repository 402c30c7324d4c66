"""What comes after the last step: the final model, held-out losses, tasks, card and report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError

from corebatch.config.settings import Settings
from corebatch.distributed.ranks import Ranks
from corebatch.errors import CheckpointError, CorebatchError, MissingExtraError
from corebatch.files import write_text
from corebatch.launch.output_dir import FINISHED, Contents
from corebatch.launch.prepare import PreparedRun
from corebatch.launch.reporting import report_run, write_card
from corebatch.record.provenance import now
from corebatch.text import say


def is_closed(output_dir: Path, step: int) -> bool:
    """Whether everything that comes after the last step is there."""
    try:
        found = json.loads((output_dir / FINISHED).read_text(encoding="utf-8"))["step"] == step
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return found and Contents.of(output_dir).model is not None


def close(run: PreparedRun, result: Any, settings: Settings, output_dir: Path, ranks: Ranks, console: Console) -> None:
    """Saves and measures; every part may be done again if it was not finished. Raises CheckpointError: on all ranks,
    something could not be written; says where the model is."""
    trainer = run.trainer
    with ranks.together("Saving the model"), _written("the model", output_dir, saved=False):
        trainer.save_model()
        trainer.save_state()
    metrics = trainer.evaluate() if run.held_out is not None else None
    with ranks.together("Writing what comes after training"), _written("what comes after it", output_dir, saved=True):
        if metrics is not None and run.first:
            trainer.save_metrics("eval", metrics, combined=False)
            console.print(f"held-out loss {metrics['eval_loss']:.4f} (mean of batches)", highlight=False)
        run.tasks.after(trainer.model, run.tokenizer)
        if run.first:
            if result.metrics:
                trainer.save_metrics("train", result.metrics, combined=False)
            write_card(output_dir, trainer, base_model=settings.model.model_name_or_path, lora=settings.lora)
    with ranks.together("Writing the report"), _written("its report", output_dir, saved=True):
        if run.first:
            finish(output_dir, settings, console)
            about = {"step": trainer.state.global_step, "time": now()}
            write_text(output_dir / FINISHED, json.dumps(about) + "\n")


def finish(output_dir: Path, settings: Settings, console: Console) -> None:
    """The run's report, on the terminal and, where matplotlib is, as a page; plain training has none."""
    if settings.coreset.takes_part:
        try:
            report_run(output_dir, console)
        except MissingExtraError as error:
            say(console, f"There is no page of it yet. {error}; then: corebatch report {output_dir}")
    say(console, f"The model is in {output_dir}")


@contextmanager
def _written(what: str, output_dir: Path, *, saved: bool) -> Iterator[None]:
    """What is written within; where that fails, the error says where the model is."""
    try:
        yield
    except CorebatchError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError):
            raise
        raise CheckpointError(_lost(what, output_dir, cause, saved)) from error
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "write" not in str(error):  # torch's own writer has no type
            raise
        raise CheckpointError(_lost(what, output_dir, error, saved)) from error


def _lost(what: str, output_dir: Path, error: Exception, saved: bool) -> str:
    checkpoint = Contents.of(output_dir).checkpoint
    where = output_dir if saved else checkpoint
    again = "the same command with --resume_from_checkpoint true writes what is missing"
    if checkpoint is None:
        again = f"what is in {output_dir} can be used as it is" if saved else "the run has to be made anew"
    safe = (
        f"The model is safe in {where}" if where is not None else "No checkpoint was asked for, and the model is lost"
    )
    return (
        f"Training is done, but {what} could not be written: {type(error).__name__}: {error}. {safe}. When there is "
        f"room, {again}."
    )
