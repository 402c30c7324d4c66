"""What makes a run the same run: its model, data, seeds, and the size of the large batch.

A checkpoint says all this of the run that wrote it, and a run that goes on from it is compared with that first.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corebatch.errors import CheckpointError
from corebatch.record.data_identity import describe_data, describe_evaluation
from corebatch.record.model_identity import (
    describe_adapters,
    describe_collator,
    describe_config,
    describe_model,
    describe_tokenizer,
    plain,
)
from corebatch.record.provenance import versions
from corebatch.sampling.tags import Sources

logger = logging.getLogger(__name__)

OPTIMISATION = (
    *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "max_grad_norm"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "neftune_noise_alpha"),
    *("bf16", "fp16"),
)
"""Training arguments of which a checkpoint keeps its own values (the optimizer's groups), or that make later steps
other ones."""


def describe_run(trainer: Any, model: Any, dataset: Any, sources: Sources) -> dict[str, Any]:
    """What a checkpoint says of its run, as plain values.

    Args:
        trainer: the Trainer, for its arguments.
        model: without wrappers, before it is sharded.
        dataset: the train set.
        sources: of the train set.
    """
    args, target = trainer.args, getattr(trainer, "target_dataset", None)
    return {
        "model": describe_model(model),
        "data": describe_data(dataset, sources),
        "target": {} if target is None else describe_evaluation(target),
        "batch": {
            "per_device_train_batch_size": args.train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "ranks": trainer.accelerator.num_processes,
            "pool_factor": trainer.coreset.pool_factor,
        },
        "settings": {
            "seed": args.seed,
            "data_seed": args.data_seed,
            "optim": str(getattr(args.optim, "value", args.optim)),
            "train_sampling_strategy": sampling(args),
            "dataloader_drop_last": args.dataloader_drop_last,
            **{key: plain(getattr(args, key)) for key in OPTIMISATION if hasattr(args, key)},
        },
        "model.config": describe_config(model),
        "adapter": describe_adapters(model),
        "tokenizer": describe_tokenizer(getattr(trainer, "processing_class", None)),
        "collator": describe_collator(getattr(trainer, "data_collator", None)),
    }


def sampling(args: Any) -> str:
    """How rows are drawn, under transformers 5's name for it."""
    by_length = getattr(args, "group_by_length", False)  # transformers 4
    return str(getattr(args, "train_sampling_strategy", "group_by_length" if by_length else "random"))


def large_batch(batch: Mapping[str, int]) -> int:
    """Rows drawn for one optimizer step, over all ranks."""
    return (
        batch["per_device_train_batch_size"]
        * batch["gradient_accumulation_steps"]
        * batch["ranks"]
        * batch["pool_factor"]
    )


def check_same_run(folder: Path, found: Any, expected: dict[str, Any]) -> None:
    """Compares what a checkpoint says of its run with the run that is to go on.

    The number of ranks and the micro-batch may differ if the large batch keeps its size: the same rows are drawn and
    chosen, though not bit for bit the same numbers, and a warning says so. Raises CheckpointError: another model, base
    model's weights, adapter, tokenizer, collator, data set, seed, optimizer, way of sampling, or size of the large
    batch; names what differs.
    """
    try:
        groups = {name: dict(found[name]) for name in ("model", "data", "settings", "batch")}
        was = large_batch(groups["batch"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} should say which run wrote it. Found no such description: {type(error).__name__}: {error}"
        ) from None
    if differing := differences(found, expected):
        raise CheckpointError(f"{folder} is another run's, which cannot go on here: " + "; ".join(differing))
    _check_batch(folder, groups["batch"], was, expected)


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """What two descriptions say differently, in words; what only one of them knows (a checkpoint of an earlier
    version, another version of peft or transformers) does not count."""
    differing = []
    for name, what in WHOLE.items():
        one, other = found.get(name) or {}, expected.get(name) or {}
        keys = [key for key in _both(one, other) if one[key] != other[key]]
        if keys == ["weights"]:
            differing.append(
                f"the base model's weights were {one['weights']} and are {other['weights']} (digests): another base "
                "model of the same shapes"
            )
        elif keys:
            differing.append(f"{what} was {_shown(one)} and is {_shown(other)}")
    for name in ("settings", "model.config", "adapter", "tokenizer", "collator"):
        one, other = found.get(name) or {}, expected.get(name) or {}
        prefix = "" if name == "settings" else f"{name}."
        differing += [
            f"{prefix}{key} was {one[key]!r} and is {other[key]!r}"
            for key in _both(one, other)
            if one[key] != other[key]
        ]
    return differing


WHOLE = {"model": "model", "data": "train_dataset", "target": "target_dataset"}
"""Parts of a description that are told whole."""


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [key for key in other if key in one and not (key == "weights" and None in (one[key], other[key]))]


def _check_batch(folder: Path, found: dict[str, int], was: int, expected: dict[str, Any]) -> None:
    batch, now = expected["batch"], large_batch(expected["batch"])
    if was != now:
        unit = now // batch["gradient_accumulation_steps"]
        fits = f"gradient_accumulation_steps={was // unit} fits" if was % unit == 0 else "no whole number of them fits"
        raise CheckpointError(
            f"{folder} was written with a large batch of {_product(found)} rows, and the run has {_product(batch)}. "
            "Every step would draw other rows. With per_device_train_batch_size="
            f"{batch['per_device_train_batch_size']} on {batch['ranks']} ranks, {fits}."
        )
    if found == batch:
        return
    by_length = expected["settings"]["train_sampling_strategy"] == "group_by_length"
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
    if by_length and found[keys[0]] * found[keys[1]] != batch[keys[0]] * batch[keys[1]]:
        raise CheckpointError(
            f"{folder} groups rows by length in stretches of per_device_train_batch_size x "
            f"gradient_accumulation_steps = {found[keys[0]] * found[keys[1]]} rows. Found "
            f"{batch[keys[0]] * batch[keys[1]]}: every step would draw other rows."
        )
    logger.warning(
        "%s was written with batches of %s rows and goes on with %s. The same rows are drawn and chosen at every step; "
        "the numbers are not bit for bit those of the uninterrupted run, and dropout is drawn anew.",
        folder,
        _product(found),
        _product(batch),
    )


def _product(batch: Mapping[str, int]) -> str:
    return (
        f"{large_batch(batch)} = {batch['per_device_train_batch_size']} (per_device_train_batch_size) x "
        f"{batch['gradient_accumulation_steps']} (gradient_accumulation_steps) x {batch['ranks']} (ranks) x "
        f"{batch['pool_factor']} (pool_factor)"
    )


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def note_versions(folder: Path, found: Any) -> None:
    """Warns of packages that have changed since the checkpoint was written."""
    now = versions()
    found = found if isinstance(found, dict) else {}
    changed = [f"{name} {found[name]} to {now.get(name)}" for name in found if found[name] != now.get(name)]
    if changed:
        logger.warning(
            "%s was written with other versions, so the run may not go on bit for bit: %s.", folder, ", ".join(changed)
        )
