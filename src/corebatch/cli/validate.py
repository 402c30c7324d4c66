"""`corebatch validate`: reads everything, shows what would be trained, and makes the first step, as `train` would."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from corebatch.cli.first_step import make_first_step
from corebatch.cli.folders import check_place, checkpoint_of
from corebatch.cli.output_dir import plan_start
from corebatch.cli.prepare import check_evaluation, prepare, tell_idle, tell_mixture, tell_unused
from corebatch.cli.show_rows import show_rows
from corebatch.cli.tables import table
from corebatch.config.building import load_tokenizer, preview, skeleton
from corebatch.config.settings import Settings
from corebatch.errors import ConfigError
from corebatch.model.footprint import predict
from corebatch.record.folder_lock import check_unowned
from corebatch.scratch import temporary_folder
from corebatch.sources import small_candidates
from corebatch.text import say
from corebatch.trainer import CoresetConfig


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
        resume = checkpoint_of(output_dir, resume, settings.coreset.pool_factor)
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
            _show_data(settings, tokenizer, mixture.dataset, held_out, console, rows)
            _show_plan(settings, args, mixture.counts, console)

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
    held_out = preview(settings, tokenizer, evaluation=True) if settings.data.eval_datasets else None
    tell_mixture(seen, tokenizer, console, "Sources (lengths in tokens, from a sample)")
    tell_unused(seen, console)
    for name, source in [*seen.sources.items(), *(held_out.sources.items() if held_out else ())]:
        if source.sampled == source.sampled_dropped:
            say(
                console,
                f"Warning: none of {source.sampled} rows that were looked at of {name} has a trained token within "
                f"max_length {settings.data.max_length}. Raise max_length.",
                "yellow",
            )
    _show_data(settings, tokenizer, seen.sample, held_out, console, rows)
    _show_plan(settings, args, seen.sources, console)


def _show_data(settings: Settings, tokenizer: Any, dataset: Any, held_out: Any, console: Console, rows: int) -> None:
    """How rows become tokens, some of them, and the held-out sets."""
    data = settings.data
    template = "the tokenizer's own" if data.chat_template is None else data.chat_template
    console.print()
    console.print(
        table(
            "How rows become tokens",
            [
                {"what": "at most", "value": f"{data.max_length} tokens"},
                {"what": "separator between prompt and completion", "value": repr(data.separator)},
                {"what": "prompts are put into the chat template", "value": data.apply_chat_template},
                {"what": "chat template of conversations", "value": template},
                {"what": "trained turns of a conversation", "value": data.train_turns},
                {"what": "end of sequence, padding", "value": f"{tokenizer.eos_token}, {tokenizer.pad_token}"},
            ],
        )
    )
    console.print()
    if rows and len(dataset):
        show_rows(dataset, tokenizer, console, rows)
    if held_out is not None:
        console.print()
        tell_mixture(held_out, tokenizer, console, "Held-out sets (lengths in tokens)")
        tell_unused(held_out, console)


def _show_plan(settings: Settings, args: Any, counts: Mapping[str, Any], console: Console) -> None:
    """Steps and memory.

    Args:
        counts: source -> its `rows` and `lengths`.
    """
    console.print()
    console.print(table("Steps", _steps(settings.coreset, args, {name: one.rows for name, one in counts.items()})))
    console.print()
    longest = max((one.lengths["max"] for one in counts.values() if one.lengths), default=0)
    rows = _memory(settings, args, int(longest))
    console.print(table("Predicted memory of a process, counted on a model without weights", rows))


def _memory(settings: Settings, args: Any, longest: int) -> list[dict[str, Any]]:
    model = skeleton(settings)
    memory = predict(
        model,
        rows=args.per_device_train_batch_size,
        tokens=longest,
        pool_factor=settings.coreset.pool_factor,
        checkpointing=bool(getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing),
        four_bits=settings.model.load_in_4bit,
    )
    return [
        {"what": "numbers in the model", "value": sum(p.numel() for p in model.parameters())},
        {"what": "of them trained", "value": sum(p.numel() for p in model.parameters() if p.requires_grad)},
        {"what": "weights, MB", "value": memory.weights / 2**20},
        {"what": "gradients, MB", "value": memory.gradients / 2**20},
        {"what": "optimizer (AdamW), MB", "value": memory.optimizer / 2**20},
        {
            "what": f"activations of {args.per_device_train_batch_size} x {longest} tokens, MB",
            "value": None if memory.activations is None else memory.activations / 2**20,
        },
        {"what": "together, MB", "value": memory.total / 2**20},
    ]


def _steps(coreset: CoresetConfig, args: Any, counts: Mapping[str, int]) -> list[dict[str, Any]]:
    ranks = max(args.world_size, 1)
    small = args.per_device_train_batch_size * args.gradient_accumulation_steps * ranks
    large = small * coreset.pool_factor
    total = sum(counts.values())
    per_epoch = math.ceil(
        math.ceil(total / (large // args.gradient_accumulation_steps)) / args.gradient_accumulation_steps
    )
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    names = sorted(counts)
    numbered = Counter({i: counts[name] for i, name in enumerate(names)})
    kept = sorted(names[s] for s in small_candidates(numbered, names, coreset.small_sources))
    return [
        {"what": "examples", "value": total},
        {"what": "large batch (drawn a step)", "value": large},
        {"what": "small batch (trained a step)", "value": small},
        {"what": "micro-batches a step, on each of the ranks", "value": args.gradient_accumulation_steps},
        {"what": "ranks", "value": ranks},
        {"what": "steps an epoch", "value": per_epoch},
        {"what": "steps in all", "value": steps},
        {"what": "scorer", "value": str(coreset.scorer)},
        {"what": "selector", "value": str(coreset.selector)},
        {"what": "small sources that may be kept whole", "value": ", ".join(kept) or "none"},
    ]
