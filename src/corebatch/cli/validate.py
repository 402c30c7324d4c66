"""`corebatch validate`: reads everything, shows what would be trained, and makes the first step, as `train` would."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from corebatch.cli.show_plan import show_plan
from corebatch.cli.show_rows import show_data
from corebatch.config.building import load_tokenizer, preview
from corebatch.config.settings import Settings
from corebatch.errors import ConfigError
from corebatch.launch.cuts import check_cap
from corebatch.launch.first_step import make_first_step
from corebatch.launch.output_dir import check_place, checkpoint_of, plan_start
from corebatch.launch.prepare import check_evaluation, prepare
from corebatch.launch.telling import tell_idle, tell_mixture, tell_unused
from corebatch.launch.trained_mixture import tell_trained
from corebatch.record.folder_lock import check_unowned
from corebatch.scratch import temporary_folder
from corebatch.text import say


def validate(settings: Settings, console: Console, *, rows: int = 1, fast: bool = False) -> None:
    """Checks settings, data and model without writing into `output_dir`, and prints what would be trained.

    By default everything is read, and all is done that `train` does up to and with its first step, in a temporary
    folder: what stops `train` before its second step stops `validate`, with the same words.

    Args:
        rows: so many rows of each source are shown as text, at least 0.
        fast: looks at a sample of the data, and loads no weights.

    Raises:
        CorebatchError: as `train`.
    """
    if rows < 0:
        raise ConfigError(f"--rows should not be negative. Found {rows}.")
    output_dir = Path(settings.training["output_dir"])
    resume = settings.training.get("resume_from_checkpoint") or None
    check_place(output_dir)
    check_unowned(output_dir)
    resume = plan_start(output_dir, resume, settings.overwrite).resume
    if resume is not None:
        resume = checkpoint_of(output_dir, resume, takes_part=settings.coreset.takes_part)
    if fast:
        _look(settings, console, rows)
        console.print("\n--fast: a sample of the data was looked at, and no step was made. ", end="", highlight=False)
        console.print("`validate` without it reads all rows and makes the first step.", highlight=False)
        return
    with temporary_folder("corebatch-validate-") as folder:
        training = {**settings.training, "output_dir": folder, "push_to_hub": False}

        def look(mixture: Any, held_out: Any, tokenizer: Any, args: Any) -> None:
            tell_mixture(mixture, tokenizer, console)
            tell_unused(mixture, console)
            tell_trained(settings, mixture.counts, console)
            show_data(settings, tokenizer, mixture.dataset, held_out, console, rows)
            show_plan(settings, args, mixture.counts, mixture.dataset, console)

        run = prepare(dataclasses.replace(settings, training=training), console, look)
        loss = make_first_step(run, output_dir, resume)
    if run.first:
        step = "Nothing to do: the run has made all its steps"
        if loss is not None:
            step = "A step was made" if resume else f"The first step was made, with a training loss of {loss:.4f}"
            step += ", in a temporary folder that is gone"
        say(console, f"\n{step}. Nothing was written into {output_dir}.")


def _look(settings: Settings, console: Console, rows: int) -> None:
    args = settings.training_arguments()
    check_evaluation(settings, args)
    tell_idle(settings, args, console)
    tokenizer = load_tokenizer(settings.model)
    seen = preview(settings, tokenizer)
    check_cap(settings.coreset, seen.sample)
    held_out = preview(settings, tokenizer, evaluation=True) if settings.data.eval_datasets else None
    tell_mixture(seen, tokenizer, console, "Sources (lengths in tokens, from a sample)")
    tell_unused(seen, console)
    tell_trained(settings, seen.sources, console)
    for name, source in [*seen.sources.items(), *(held_out.sources.items() if held_out else ())]:
        if source.sampled == source.sampled_dropped:
            say(
                console,
                f"Warning: none of {source.sampled} rows that were looked at of {name} has a trained token within "
                f"max_length {settings.data.max_length}. Raise max_length.",
                "yellow",
            )
    show_data(settings, tokenizer, seen.sample, held_out, console, rows)
    show_plan(settings, args, seen.sources, seen.sample, console)
