"""What a Trainer and its accelerator say of where and how a run goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from corebatch.sampling.shares import DrawPlan
from corebatch.sampling.tags import is_stream

SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""Accelerate's names of engines whose ranks must run the same forwards."""


def sharded(trainer: Any) -> str | None:
    """The engine that divides weights or gradients over ranks, or None."""
    kind = str(getattr(trainer.accelerator.distributed_type, "value", ""))
    return kind if kind in SHARDED else None


def inner_model(trainer: Any, model: Any = None) -> Any:
    """The model below DDP, torch.compile and the like; autocast stays. By default the one that is trained."""
    return trainer.accelerator.unwrap_model(trainer.model_wrapped if model is None else model, keep_torch_compile=False)


def run_dir(trainer: Any) -> Path:
    """Where the run's files lie: output_dir, or in a search the trial's folder in it."""
    return Path(trainer._get_output_dir(trial=getattr(trainer, "_trial", None)))


def examples_come_again(trainer: Any, ranks: int, draws: DrawPlan | None = None, most: int = 1) -> bool:
    """Whether the settings make the run draw more examples than there are, or `draws` more of a source. `most`: rows
    that the loader draws as one, at most."""
    dataset, args = trainer.train_dataset, trainer.args
    if dataset is None or is_stream(dataset):
        return False
    if args.max_steps <= 0:
        again = draws is not None and draws.come_again(args.num_train_epochs * draws.rows_of_epoch())
        return bool(args.num_train_epochs > 1) or again
    drawn = args.max_steps * args.gradient_accumulation_steps * trainer._train_batch_size
    drawn *= trainer.coreset.pool_factor * ranks * most
    return bool(drawn > len(dataset)) if draws is None else draws.come_again(drawn)
