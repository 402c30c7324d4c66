"""`corebatch train`: from a config to a trained model and its record."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from corebatch.config.settings import Settings
from corebatch.launch.closing import close, finish, is_closed
from corebatch.launch.held_out import TrainerBySource
from corebatch.launch.output_dir import check_place, checkpoint_of, plan_start
from corebatch.launch.prepare import prepare
from corebatch.launch.progress import show_progress
from corebatch.record.folder_lock import owned, owned_by_first
from corebatch.text import say
from corebatch.trainer.run_control import all_ranks

__all__ = ["TrainerBySource", "finish", "train"]


def train(settings: Settings, console: Console) -> Path:
    """Trains, saves model, tokenizer, model card and report into `output_dir`, and returns that folder. Raises
    ConfigError: the folder is not empty and nothing is resumed, or another process is at work there; all other settings
    are checked before as well."""
    with ExitStack() as held:
        _train(settings, console, held)
    return Path(settings.training["output_dir"])


def _train(settings: Settings, console: Console, held: ExitStack) -> None:
    output_dir = Path(settings.training["output_dir"])
    asked = settings.training.get("resume_from_checkpoint") or None
    was_there = output_dir.is_dir()
    check_place(output_dir)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # several agree on it when they are connected
        held.enter_context(owned(output_dir))
    start = plan_start(output_dir, asked, settings.overwrite, was_there=was_there)
    if start.resume is not None and not settings.coreset.takes_part:  # else the trainer looks, on all ranks together
        checkpoint_of(output_dir, start.resume, takes_part=False)
    run = prepare(settings, console)
    trainer = run.trainer
    ranks = all_ranks(trainer)
    held.enter_context(owned_by_first(trainer.args, ranks))
    with ranks.together("Looking at output_dir"):
        if run.first:  # what lies there may have changed before the folder was ours
            start = plan_start(output_dir, asked, settings.overwrite, was_there=was_there)
            start.clear()
            if start.told:
                say(console, start.told)
    if run.first and settings.coreset.pool_factor > 1:
        say(console, f"Scored: {trainer._run.scored}.")
    show_progress(trainer, console)
    run.tasks.before(trainer.model, run.tokenizer)
    resume = start.resume
    if resume is not None and not settings.coreset.takes_part:
        resume = checkpoint_of(output_dir, resume, takes_part=False)
    result = trainer.train(resume_from_checkpoint=resume)
    nothing = not result.metrics
    if nothing and ranks.largest(int(run.first and is_closed(output_dir, result.global_step))):
        if run.first:
            say(
                console,
                f"Nothing to do: the run in {output_dir} is finished, with all of its {result.global_step} steps.",
            )
        return
    close(run, result, settings, output_dir, ranks, console)
