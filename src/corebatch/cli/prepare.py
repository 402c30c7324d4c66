"""Everything up to the first step, the same for `train` and `validate`: what stops one stops the other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import set_seed

from corebatch.cli.building import load_model, load_tokenizer, read_mixture
from corebatch.cli.evaluate_run import BeforeAndAfter
from corebatch.cli.held_out import TrainerBySource, sets_by_source
from corebatch.cli.settings import Settings
from corebatch.cli.tables import source_rows, table
from corebatch.errors import ConfigError
from corebatch.mixture import Mixture, PaddingCollator


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that is about to begin.

    Attributes:
        trainer: its model has adapters if they are trained; nothing was trained.
        tokenizer: as it will be saved.
        mixture: the rows that are trained.
        held_out: the rows of `eval_datasets`, or None.
        tasks: of `eval_tasks`, to be measured before and after.
        first: whether this process is rank 0, which writes and prints.
    """

    trainer: Any
    tokenizer: Any
    mixture: Mixture
    held_out: Mixture | None
    tasks: BeforeAndAfter
    first: bool


def prepare(settings: Settings, console: Console) -> Run:
    """Reads data and model, and makes the trainer; `output_dir` is not touched.

    Raises:
        CorebatchError: whatever can be wrong with settings, data and model.
    """
    tasks = BeforeAndAfter(settings.data.eval_tasks, Path(settings.training["output_dir"]), console)
    if tasks.tasks and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "eval_tasks are measured in one process. Found several: leave them out, and run `corebatch evaluate` on "
            "the trained model."
        )
    args = settings.training_arguments()
    first = int(os.environ.get("RANK", "0")) == 0
    tokenizer = load_tokenizer(settings.model)
    mixture = read_mixture(settings, tokenizer)
    held_out = read_mixture(settings, tokenizer, evaluation=True) if settings.data.eval_datasets else None
    if first:
        console.print(table("Mixture (lengths in tokens)", source_rows(mixture.summary())))
    set_seed(args.seed)  # adapters are drawn before the Trainer seeds: the same config is the same run in any process
    trainer = TrainerBySource(
        model=load_model(settings),
        args=args,
        train_dataset=mixture.dataset,
        eval_dataset=sets_by_source(held_out.dataset, settings) if held_out is not None else None,
        data_collator=PaddingCollator(tokenizer),
        processing_class=tokenizer,
        coreset=settings.coreset,
    )
    return Run(trainer=trainer, tokenizer=tokenizer, mixture=mixture, held_out=held_out, tasks=tasks, first=first)
