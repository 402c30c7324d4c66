"""`corebatch train`: from a config to a trained model and its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from corebatch.cli.card import write_card
from corebatch.cli.folders import check_place, checkpoint_of
from corebatch.cli.held_out import TrainerBySource
from corebatch.cli.prepare import prepare
from corebatch.cli.progress import show_progress
from corebatch.cli.settings import Settings
from corebatch.errors import ConfigError
from corebatch.text import say

__all__ = ["TrainerBySource", "check_output", "finish", "train"]


def train(settings: Settings, console: Console) -> Path:
    """Trains, saves model, tokenizer, model card and report into `output_dir`, and returns that folder.

    Raises:
        ConfigError: the folder is not empty and nothing is resumed; all other settings are checked before as well.
    """
    output_dir = Path(settings.training["output_dir"])
    resume = settings.training.get("resume_from_checkpoint") or None
    check_output(output_dir, resume)
    check_place(output_dir)
    if resume is not None and settings.coreset.pool_factor == 1:  # else the trainer looks, on all ranks together
        resume = checkpoint_of(output_dir, resume, 1)
    run = prepare(settings, console)
    trainer = run.trainer
    show_progress(trainer, console)
    run.tasks.before(trainer.model, run.tokenizer)
    result = trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_state()
    if run.held_out is not None:
        metrics = trainer.evaluate()
        if run.first:
            trainer.save_metrics("eval", metrics, combined=False)
            console.print(f"held-out loss {metrics['eval_loss']:.4f} (mean of batches)", highlight=False)
    run.tasks.after(trainer.model, run.tokenizer)
    if run.first:
        trainer.save_metrics("train", result.metrics, combined=False)
        write_card(output_dir, trainer, base_model=settings.model.model_name_or_path, lora=settings.lora)
        finish(output_dir, settings, console)
    return output_dir


def check_output(output_dir: Path, resume: Any) -> None:
    """Raises ConfigError if the folder holds something and the run does not go on from it."""
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"output_dir: {output_dir} is a file. Expected a folder.")
    if resume is None and output_dir.is_dir() and any(output_dir.iterdir()):
        raise ConfigError(
            f"output_dir: {output_dir} is not empty, and nothing in it is overwritten. Choose another folder, or go on "
            "from its last checkpoint with --resume_from_checkpoint true."
        )


def finish(output_dir: Path, settings: Settings, console: Console) -> None:
    """The run's report, on the terminal and as a page; plain training has none."""
    if settings.coreset.pool_factor > 1:
        from corebatch.cli.report import report

        report(output_dir, console)
    say(console, f"The model is in {output_dir}")
