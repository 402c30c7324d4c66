"""Everything up to the first step, the same for `train` and `validate`: what stops one stops the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import set_seed

from corebatch.cli.evaluate_run import BeforeAndAfter
from corebatch.cli.held_out import CheckGeneration, TrainerBySource, refused, sets_by_source
from corebatch.cli.tables import MOST_SOURCES, source_rows, table
from corebatch.config.building import SOURCE_COLUMN, load_model, load_tokenizer, read_mixture
from corebatch.config.settings import Settings
from corebatch.errors import ConfigError
from corebatch.mixture import Mixture, PaddingCollator
from corebatch.mixture.ends import endless_sources
from corebatch.mixture.leaks import rows_in_both
from corebatch.text import say


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


def prepare(settings: Settings, console: Console, look: Callable[..., None] | None = None) -> Run:
    """Reads data and model, and makes the trainer; `output_dir` is not touched.

    Args:
        look: called with the mixture, the held-out mixture or None, the tokenizer and the TrainingArguments on rank 0,
            once data are read and before the model is; by default the sources are printed.

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
    check_evaluation(settings, args)
    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        tell_idle(settings, args, console)
    tokenizer = load_tokenizer(settings.model)
    mixture = read_mixture(settings, tokenizer)
    held_out = read_mixture(settings, tokenizer, evaluation=True) if settings.data.eval_datasets else None
    eval_dataset = None if held_out is None else sets_by_source(held_out.dataset, settings)
    check_best_metric(args, eval_dataset)
    if first and look is not None:
        look(mixture, held_out, tokenizer, args)
    elif first:
        tell_mixture(mixture, tokenizer, console)
        tell_unused(mixture, console)
    if first and held_out is not None:
        _tell_known(mixture.dataset, held_out.dataset, console)
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
            callbacks=[CheckGeneration()],
        )
    return Run(trainer=trainer, tokenizer=tokenizer, mixture=mixture, held_out=held_out, tasks=tasks, first=first)


def tell_mixture(mixture: Any, tokenizer: Any, console: Console, title: str = "Mixture (lengths in tokens)") -> None:
    """The sources of a Mixture or MixturePreview, a row each, and what should be known of them."""
    found = mixture.summary()
    console.print(table(title, source_rows(found)))
    for row in found[:MOST_SOURCES]:
        if why := _why_dropped(row, mixture.options.max_length):
            say(console, why)
    cure = "A chat template should end an assistant's turn with such a token."
    if tokenizer.eos_token is None:
        cure = "The tokenizer has no end-of-sequence token: give eos_token."
    for label, (count, token, where) in mixture.special_texts.items():
        say(
            console,
            f"Warning: in {count:,} conversations of {label} a turn holds the text of a special token ({token} in "
            f"{where}). The tokenizer reads it as that token, so it may end a turn or open another.",
            "yellow",
        )
    rows = getattr(mixture, "dataset", None)
    dataset = rows if rows is not None else mixture.sample
    for source in endless_sources(dataset, tokenizer, mixture.options.max_length)[:MOST_SOURCES]:
        say(
            console,
            f"Warning: no answer of {source} ends with the end-of-sequence token or a special token, so the model is "
            f"not taught to stop. {cure}",
            "yellow",
        )


def _tell_known(train: Any, held_out: Any, console: Console) -> None:
    """Warns of held-out rows that are trained as well."""
    if known := rows_in_both(train, held_out):
        say(
            console,
            f"Warning: {known:,} of {len(held_out):,} held-out rows are trained as well, token by token: their loss "
            "says nothing of rows that the model has not seen.",
            "yellow",
        )


def _why_dropped(row: Mapping[str, Any], max_length: int) -> str:
    """Why rows of a source are left out, in a sentence; '' for none. Of a preview, the sampled ones are counted."""
    kind = "rows" if "rows_dropped" in row else "sampled"
    dropped, blank = row[f"{kind}_dropped"], row[f"{kind}_blank"]
    reasons = (
        (blank, "nothing to train (a blank answer, or none)"),
        (dropped - blank, f"no trained token within max_length {max_length}"),
    )
    told = " and ".join(f"{count:,} with {reason}" for count, reason in reasons if count)
    read = row["rows_read"] if kind == "rows" else row["sampled"]
    looked = "read" if kind == "rows" else "looked at"
    return f"{row['source']}: of {read:,} rows {looked}, {told} are left out." if told else ""


def tell_unused(mixture: Any, console: Console) -> None:
    """The columns of each data set to which nothing gives a meaning."""
    for name, columns in mixture.unused_columns.items():
        if columns:
            say(console, f"{name}: not used: {', '.join(columns)}", "yellow")


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


def tell_idle(settings: Settings, args: Any, console: Console) -> None:
    """Keys that are given and have no effect beside the others."""
    strategy = {key: getattr(getattr(args, key), "value", getattr(args, key)) for key in _STRATEGIES}
    best = (
        args.load_best_model_at_end or strategy["save_strategy"] == "best" or "plateau" in str(args.lr_scheduler_type)
    )
    checkpointing = bool(getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing)
    needs = {
        "eval_steps": (strategy["eval_strategy"] == "steps", "eval_strategy: steps"),
        "save_steps": (strategy["save_strategy"] == "steps", "save_strategy: steps"),
        "metric_for_best_model": (best, "load_best_model_at_end: true"),
        "greater_is_better": (best, "load_best_model_at_end: true"),
        "gradient_checkpointing_kwargs": (checkpointing, "gradient_checkpointing: true"),
        "activation_checkpointing_kwargs": (checkpointing, "gradient_checkpointing: true"),
        "fsdp_config": (bool(args.fsdp), "fsdp"),
        "torch_compile_mode": (args.torch_compile, "torch_compile: true"),
    }
    for key, (used, by) in needs.items():
        if settings.training.get(key) is not None and not used:
            say(console, f"Warning: {key} has no effect without {by}.", "yellow")
    for field in fields(settings.model):
        set_otherwise = getattr(settings.model, field.name) != field.default
        if field.name.startswith("lora_") and set_otherwise and not settings.lora:
            say(console, f"Warning: {field.name} has no effect beside use_peft: false.", "yellow")


_STRATEGIES = ("eval_strategy", "save_strategy")
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
