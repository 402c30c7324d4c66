"""`corebatch validate`: reads everything, shows what would be trained, trains nothing."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console

from corebatch.cli.building import load_tokenizer, skeleton
from corebatch.cli.evaluate_run import make_tasks
from corebatch.cli.memory import predict
from corebatch.cli.settings import Settings
from corebatch.cli.tables import source_rows, table
from corebatch.cli.train import check_output
from corebatch.mixture import preview_mixture
from corebatch.sources import small_candidates
from corebatch.trainer import CoresetConfig


def validate(settings: Settings, console: Console) -> None:
    """Checks settings, data and model without writing anything, and prints sources, lengths, the large and the small
    batch, the number of steps, and the predicted memory."""
    check_output(Path(settings.training["output_dir"]), settings.training.get("resume_from_checkpoint") or None)
    args = settings.training_arguments()
    data = settings.data
    make_tasks(data.eval_tasks)
    preview = preview_mixture(
        list(data.datasets),
        load_tokenizer(settings.model),
        source_column=settings.coreset.source_column,
        seed=int(args.seed),
        max_length=data.max_length,
        apply_chat_template=data.apply_chat_template,
        chat_template=data.chat_template,
        separator=data.separator,
        train_turns=data.train_turns,
    )
    console.print(table("Sources (lengths in tokens, from a sample)", source_rows(preview.summary())))
    console.print()
    console.print(table("Steps", _steps(settings.coreset, args, preview)))
    longest = max(source.lengths["max"] for source in preview.sources.values() if source.lengths)
    model = skeleton(settings)
    memory = predict(
        model,
        rows=args.per_device_train_batch_size,
        tokens=int(longest),
        pool_factor=settings.coreset.pool_factor,
        checkpointing=bool(getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing),
        four_bits=settings.model.load_in_4bit,
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows: list[dict[str, Any]] = [
        {"what": "numbers in the model", "value": sum(p.numel() for p in model.parameters())},
        {"what": "of them trained", "value": trained},
        {"what": "weights, MB", "value": memory.weights / 2**20},
        {"what": "gradients, MB", "value": memory.gradients / 2**20},
        {"what": "optimizer (AdamW), MB", "value": memory.optimizer / 2**20},
        {
            "what": f"activations of {args.per_device_train_batch_size} x {longest} tokens, MB",
            "value": None if memory.activations is None else memory.activations / 2**20,
        },
        {"what": "together, MB", "value": memory.total / 2**20},
    ]
    console.print()
    console.print(table("Predicted memory of a process, counted on a model without weights", rows))
    console.print("\nNothing was trained and nothing was written.", highlight=False)


def _steps(coreset: CoresetConfig, args: Any, preview: Any) -> list[dict[str, Any]]:
    ranks = max(args.world_size, 1)
    small = args.per_device_train_batch_size * args.gradient_accumulation_steps * ranks
    large = small * coreset.pool_factor
    counts = {name: source.rows for name, source in preview.sources.items()}
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
