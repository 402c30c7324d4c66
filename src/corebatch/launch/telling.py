"""What a user should know of data and settings before the first step, on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rich.console import Console

from corebatch.config.settings import Settings
from corebatch.mixture.notices import endless_sources, rows_in_both
from corebatch.rendering.sheet import MOST_SOURCES, source_rows, table
from corebatch.text import say
from corebatch.trainer import CoresetConfig

OF_CHOICES = (
    *("scorer", "scorer_options", "selector", "selector_options", "normalise", "sparsify", "small_sources"),
    *("small_sources_cap", "leftovers", "feedback", "scoring"),
)
"""Keys of `coreset` that say how rows are scored and chosen."""
OF_STEPS = ("padding_free", "track_error")
"""Those that say how a step is trained, if it is not left to the plain Trainer."""
_STRATEGIES = ("eval_strategy", "save_strategy")


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


def tell_known(train: Any, held_out: Any, console: Console) -> None:
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
    if idle := _idle_choices(settings.coreset):
        say(console, f"Warning: coreset.{', coreset.'.join(idle)} without effect: pool_factor is 1.", "yellow")
    for field in fields(settings.model):
        set_otherwise = getattr(settings.model, field.name) != field.default
        if field.name.startswith("lora_") and set_otherwise and not settings.lora:
            say(console, f"Warning: {field.name} has no effect beside use_peft: false.", "yellow")


def _idle_choices(coreset: CoresetConfig) -> list[str]:
    """Keys that are set and have no effect where every row is trained."""
    if coreset.pool_factor > 1:
        return []
    names, default = OF_CHOICES + (() if coreset.takes_part else OF_STEPS), CoresetConfig()
    given = [name for name in names if name not in coreset.automatic]
    return [name for name in given if name in default.automatic or getattr(coreset, name) != getattr(default, name)]
