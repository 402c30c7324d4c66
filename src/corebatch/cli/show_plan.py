"""What `validate` shows of steps and memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from corebatch.batch.scoring import scored_rows
from corebatch.config.building import skeleton
from corebatch.config.settings import Settings
from corebatch.launch.cuts import STEPS, saved
from corebatch.mixture import row_lengths
from corebatch.model.footprint import predict
from corebatch.model.model_flops import model_flops
from corebatch.optimizers import OPTIMIZERS
from corebatch.rendering.sheet import table
from corebatch.sampling.shares import plan_by_name
from corebatch.sources import small_candidates
from corebatch.trainer import CoresetConfig
from corebatch.trainer.lengths import units_of_epoch


def show_plan(settings: Settings, args: Any, counts: Mapping[str, Any], dataset: Any, console: Console) -> None:
    """Steps, micro-batches and memory. `counts`: source -> its `rows` and `lengths`; `dataset`: the mixture's rows, or
    some of them."""
    console.print()
    console.print(
        table("Steps", _steps(settings.coreset, args, {name: one.rows for name, one in counts.items()}, dataset))
    )
    if rows := _micro_batches(settings, args, dataset):
        console.print()
        title = f"Micro-batches of {STEPS} steps whose rows are drawn at random"
        console.print(table(title, rows))
    console.print()
    longest = max((one.lengths["max"] for one in counts.values() if one.lengths), default=0)
    rows = _memory(settings, args, int(longest))
    console.print(table("Predicted memory of a process, counted on a model without weights", rows))


def _micro_batches(settings: Settings, args: Any, dataset: Any) -> list[dict[str, Any]]:
    """What the cut saves; nothing where rows stay as they are drawn, or are drawn by length."""
    coreset, sampler = settings.coreset, getattr(args, "train_sampling_strategy", "random")
    if (
        coreset.by_length is not None
        or coreset.cut.by == "plain"
        or sampler != "random"
        or getattr(args, "group_by_length", False)
        or not len(dataset)
    ):
        return []
    flops = model_flops(skeleton(settings)) if coreset.cut.by == "flops" else None
    found = saved(coreset, row_lengths(dataset), args, float if flops is None else flops.row)
    by = f"cut by {coreset.cut.by}"
    rows = [
        {"what": "positions a token, as they are drawn", "value": found.positions_plain / found.tokens},
        {"what": f"positions a token, {by}", "value": found.positions / found.tokens},
        {"what": "largest, as they are drawn, positions", "value": found.largest_plain},
        {"what": f"largest, {by}, positions", "value": found.largest},
    ]
    parts = {"what": "parts in which one is trained, at most", "value": found.parts}
    return [*rows, parts] if found.parts > 1 else rows


def _memory(settings: Settings, args: Any, longest: int) -> list[dict[str, Any]]:
    model = skeleton(settings)
    memory = predict(
        model,
        rows=args.per_device_train_batch_size,
        tokens=longest,
        pool_factor=settings.coreset.pool_factor,
        checkpointing=bool(getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing),
        four_bits=settings.model.load_in_4bit,
        optim=str(args.optim),
    )
    named = str(args.optim) if str(args.optim) in OPTIMIZERS else "AdamW"
    return [
        {"what": "parameters of the model", "value": sum(p.numel() for p in model.parameters())},
        {"what": "of them trained", "value": sum(p.numel() for p in model.parameters() if p.requires_grad)},
        {"what": "weights, MB", "value": memory.weights / 2**20},
        {"what": "gradients, MB", "value": memory.gradients / 2**20},
        {"what": f"optimizer ({named}), MB", "value": memory.optimizer / 2**20},
        {
            "what": f"activations of {args.per_device_train_batch_size} x {longest} tokens, MB",
            "value": None if memory.activations is None else memory.activations / 2**20,
        },
        {"what": "together, MB", "value": memory.total / 2**20},
    ]


def _steps(coreset: CoresetConfig, args: Any, counts: Mapping[str, int], dataset: Any) -> list[dict[str, Any]]:
    ranks = max(args.world_size, 1)
    small = args.per_device_train_batch_size * args.gradient_accumulation_steps * ranks
    large = small * coreset.pool_factor
    known = {name: count for name, count in counts.items() if count}
    plan = plan_by_name(coreset.sampling, known) if known else None
    total = 0 if plan is None else plan.rows_of_epoch()
    unit = ""
    if coreset.by_length is not None and len(dataset):
        found = units_of_epoch(coreset, row_lengths(dataset), large)
        total, unit = found * sum(counts.values()) // len(dataset), ", in rows of the longest bucket"
    per_epoch = math.ceil(
        math.ceil(total / (large // args.gradient_accumulation_steps)) / args.gradient_accumulation_steps
    )
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    again = plan is not None and plan.come_again(steps * large) if args.max_steps > 0 else args.num_train_epochs > 1
    scoring = coreset.resolve_scoring(again, taught=not args.torch_compile)
    names = sorted(counts)
    numbered = Counter({i: counts[name] for i, name in enumerate(names)})
    kept = sorted(names[s] for s in small_candidates(numbered, names, coreset.small_sources))
    choice: list[dict[str, Any]] = [
        {"what": "scorer", "value": str(coreset.scorer)},
        {"what": "selector", "value": str(coreset.selector)},
        {"what": "scored", "value": scored_rows(scoring, coreset.step_of_run())},
        {"what": "error feedback", "value": "none" if coreset.feedback is None else coreset.feedback},
        {"what": "small sources that are kept whole", "value": ", ".join(kept) or "none"},
    ]
    grown: list[dict[str, Any]] = []
    if coreset.budget is not None:
        most = int(coreset.budget.most * args.gradient_accumulation_steps)
        what = f"small batch at most, grown by the budget {coreset.budget.name}"
        grown = [{"what": what, "value": small // args.gradient_accumulation_steps * most}]
    return [
        {"what": "examples", "value": sum(counts.values())},
        {"what": f"large batch (drawn a step{unit})", "value": large},
        {"what": f"small batch (trained a step{unit})", "value": small},
        {"what": "micro-batches a step, on each of the ranks", "value": args.gradient_accumulation_steps},
        {"what": "ranks", "value": ranks},
        {"what": "steps an epoch", "value": per_epoch},
        {"what": "steps in all" + ", at most" * bool(grown), "value": steps},
        *grown,
        *(choice if coreset.pool_factor > 1 else []),
    ]
