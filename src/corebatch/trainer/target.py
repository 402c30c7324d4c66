"""The target of a run: rows that are never trained, and that a selector follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import torch
from torch import Tensor

from corebatch.batch.row_checks import check_rows
from corebatch.batch.target import Target
from corebatch.errors import ConfigError, DataError
from corebatch.model.rows import Padding, check_pool
from corebatch.sampling.tagged import check_dataset
from corebatch.trainer.engine import sharded
from corebatch.trainer.loading import padding
from corebatch.types import ID, SOURCE


def check_target(trainer: Any) -> None:
    """Raises ConfigError for a target without a selector that follows it, or one that lacks it, or that is empty."""
    dataset, coreset = trainer.target_dataset, trainer.coreset
    wanted = coreset.pool_factor > 1 and coreset.target is not None
    if dataset is None and wanted:
        raise ConfigError(
            "coreset.target needs rows to follow: give the Trainer target_dataset, or the config target_datasets. "
            "Found none."
        )
    if dataset is None:
        return
    if not wanted:
        raise ConfigError(
            "target_dataset is followed by a selector that is guided by validation gradients: set coreset.selector to "
            f"greats, coreset.target and pool_factor above 1. Found selector {coreset.selector!r}, target "
            f"{coreset.target!r}, pool_factor {coreset.pool_factor}."
        )
    try:
        check_dataset(dataset)
    except DataError as error:
        raise ConfigError(str(error).replace("train_dataset", "target_dataset")) from error


def make_target_of(trainer: Any) -> Target | None:
    """What keeps the target's mean gradient in a run, or None without a target."""
    run = trainer._run
    if trainer.target_dataset is None or run.method.target is None or trainer.coreset.pool_factor == 1:
        return None
    return Target(
        run.method,
        run.scoring.strategy,
        len(trainer.target_dataset),
        _loader(trainer),
        micro_batch=run.scoring.micro_batch,
        sharded=sharded(trainer) is not None,
    )


def _loader(trainer: Any) -> Callable[[Sequence[int]], tuple[Sequence[dict[str, Tensor]], Padding]]:
    """Reads rows as the Trainer reads those that it trains: columns that the model does not take are left out, and the
    same collator makes batches."""
    held: list[Any] = []

    def load(numbers: Sequence[int]) -> tuple[Sequence[dict[str, Tensor]], Padding]:
        if not held:
            held.extend(_as_trained(trainer))
        dataset, collate = held
        size, batches = trainer._run.scoring.micro_batch, []
        for start in range(0, len(numbers), size):
            own = numbers[start : start + size]
            try:
                batch = {**trainer._prepare_inputs(collate([dataset[number] for number in own]))}
                check_pool(batch)
            except Exception as error:  # of the user's data set and collator too
                raise DataError(
                    f"Rows {own[0]} to {own[-1]} of the target should make a batch as those of train_dataset do when "
                    f"they are trained, tokens and labels. Found {type(error).__name__}: {error}"
                ) from error
            batch[ID], batch[SOURCE] = torch.tensor(own), torch.zeros(len(own), dtype=torch.long)
            batches.append(batch)
        limits = trainer._run.limits
        check_rows(batches, limits.vocabulary, limits.longest, targets=limits.targets, of="target")
        return batches, padding(trainer, batches)

    return load


def _as_trained(trainer: Any) -> tuple[Any, Callable[[list[Any]], Any]]:
    """The target's rows, and the collator that makes batches of them."""
    # A comparison counts what its own collator sees, which should be the rows that are drawn.
    dataset, collate = trainer.target_dataset, getattr(trainer, "target_collator", trainer.data_collator)
    if isinstance(dataset, datasets.Dataset):
        try:
            return trainer._remove_unused_columns(dataset, description="target"), collate
        except ValueError as error:
            raise DataError(
                "target_dataset should have the columns of train_dataset when it is trained, tokens and labels. Found "
                f"{', '.join(dataset.column_names)}."
            ) from error
    return dataset, trainer._get_collator_with_removed_columns(collate, description="target")
