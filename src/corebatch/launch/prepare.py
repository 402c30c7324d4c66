"""Everything up to the first step, the same for `train` and `validate`: what stops one stops the other."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import set_seed

from corebatch.config.building import SOURCE_COLUMN, load_model, load_tokenizer, read_mixture, read_target
from corebatch.config.settings import Settings
from corebatch.errors import ConfigError
from corebatch.launch.cuts import check_cap
from corebatch.launch.held_out import CheckGeneration, TrainerBySource, refused, sets_by_source
from corebatch.launch.tasks import BeforeAndAfter
from corebatch.launch.telling import tell_idle, tell_known, tell_mixture, tell_unused
from corebatch.launch.trained_mixture import tell_trained
from corebatch.mixture import Mixture, PaddingCollator, attach_template


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRun:
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


def prepare(settings: Settings, console: Console, look: Callable[..., None] | None = None) -> PreparedRun:
    """Reads data and model, and makes the trainer; `output_dir` is not touched. `look`: called with the mixture, the
    held-out mixture or None, the tokenizer and the TrainingArguments on rank 0, once data are read and before the model
    is; by default the sources are printed. Raises CorebatchError: whatever can be wrong with settings, data and model.
    """
    tasks = BeforeAndAfter(settings.data.eval_tasks, Path(settings.training["output_dir"]), console)
    if tasks.tasks and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "eval_tasks are measured in one process. Found several: leave them out, and run `corebatch evaluate` on "
            "the trained model."
        )
    args = settings.training_arguments()
    check_evaluation(settings, args)
    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        tell_idle(settings, args, console)
    tokenizer = load_tokenizer(settings.model)
    mixture = read_mixture(settings, tokenizer)
    check_cap(settings.coreset, mixture.dataset)
    target = read_target(settings, tokenizer)
    held_out = read_mixture(settings, tokenizer, evaluation=True) if settings.data.eval_datasets else None
    eval_dataset = None if held_out is None else sets_by_source(held_out.dataset, settings)
    attach_template(tokenizer, settings.data.chat_template)
    check_best_metric(args, eval_dataset)
    if first and look is not None:
        look(mixture, held_out, tokenizer, args)
    elif first:
        tell_mixture(mixture, tokenizer, console)
        tell_unused(mixture, console)
        if settings.coreset.weighs or settings.coreset.sampling is not None:
            tell_trained(settings, mixture.counts, console)
    if first and held_out is not None:
        tell_known(mixture.dataset, held_out.dataset, console)
    set_seed(args.seed)  # adapters are drawn before the Trainer seeds: the same config is the same run in any process
    model = load_model(settings)
    with refused("These training settings"):
        trainer = TrainerBySource(
            model=model,
            args=args,
            train_dataset=mixture.dataset,
            eval_dataset=eval_dataset,
            data_collator=PaddingCollator(tokenizer),
            processing_class=tokenizer,
            coreset=replace(settings.coreset, source_column=SOURCE_COLUMN),
            target_dataset=target,
            callbacks=[CheckGeneration()],
        )
    return PreparedRun(
        trainer=trainer, tokenizer=tokenizer, mixture=mixture, held_out=held_out, tasks=tasks, first=first
    )


def check_evaluation(settings: Settings, args: Any) -> None:
    """Raises ConfigError for settings of an evaluation without held-out rows."""
    if settings.data.eval_datasets:
        return
    strategy = getattr(args.eval_strategy, "value", args.eval_strategy)
    asked = [
        f"{key}: {value}"
        for key, value, given in (
            ("eval_strategy", strategy, strategy != "no"),
            ("eval_on_start", "true", getattr(args, "eval_on_start", False)),
            ("load_best_model_at_end", "true", args.load_best_model_at_end),
            ("do_eval", "true", settings.training.get("do_eval")),
        )
        if given
    ]
    if asked:
        raise ConfigError(f"{', '.join(asked)} needs held-out rows: give eval_datasets, or leave it out. Found none.")


_ALWAYS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "loss")


def check_best_metric(args: Any, eval_dataset: Any) -> None:
    """Raises ConfigError if the metric that decides on the best model is none that an evaluation gives."""
    asked = args.metric_for_best_model
    if asked is None or eval_dataset is None:
        return
    names = [f"eval_{name}" for name in _ALWAYS]
    if isinstance(eval_dataset, dict):
        names += [f"eval_{source}_{name}" for source in eval_dataset for name in _ALWAYS]
    if (asked if asked.startswith("eval_") else f"eval_{asked}") not in names:
        losses = [name for name in names if name.endswith("_loss")]
        raise ConfigError(f"metric_for_best_model should be one of {', '.join(losses[:20])}. Found {asked!r}.")
