"""Rows by length in a Trainer: the buckets of its train set."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import ConfigError
from corebatch.record.run_identity import sampling as sampling_strategy
from corebatch.sampling.buckets import Buckets, powers_of_two, row_lengths
from corebatch.sampling.by_length import WHAT, ByLength
from corebatch.sampling.tags import is_stream
from corebatch.sampling.units import UnitSampler
from corebatch.trainer.config import CoresetConfig

logger = logging.getLogger(__name__)


def length_buckets(trainer: Any) -> Buckets | None:
    """The buckets by `coreset.by_length`, or None without it.

    Raises:
        ConfigError: it stands beside a stream, or another order of rows.
        InputError: the train set says no lengths, or has a row of no token, or of more than the longest bucket.
    """
    by_length, dataset = trainer.coreset.by_length, trainer.train_dataset
    if by_length is None or dataset is None:
        return None
    if is_stream(dataset):
        raise ConfigError(f"{WHAT} puts rows into buckets by number. Found a stream: use data with a length.")
    if (order := sampling_strategy(trainer.args)) != "random":
        raise ConfigError(
            f"{WHAT} decides on the order of rows, and so does train_sampling_strategy. Found {order!r}: set it to "
            f"random, or leave {WHAT} out."
        )
    lengths = row_lengths(dataset, by_length.column)
    return powers_of_two(lengths, by_length.shortest, by_length.longest, by_length.curriculum)


def units_of_epoch(coreset: CoresetConfig, lengths: Any, units: int) -> int:
    """How many units an epoch has, in whole steps of `units`, of rows of such lengths (integers [N])."""
    by_length = coreset.by_length
    assert isinstance(by_length, ByLength), "asked for where rows come by length"
    tokens = (lengths if isinstance(lengths, Tensor) else torch.tensor(lengths)).long()
    buckets = powers_of_two(tokens, by_length.shortest, by_length.longest, by_length.curriculum)
    return len(UnitSampler(buckets, together=units, leftovers=by_length.leftovers))


def unit_sampler(trainer: Any, units: int, seed: int) -> UnitSampler:
    """What the loader draws: `units` of one bucket for an optimizer step over all ranks."""
    by_length, buckets = trainer.coreset.by_length, trainer._run.lengths
    made = UnitSampler(buckets, together=units, seed=seed, cycles=by_length.cycles, leftovers=by_length.leftovers)
    if trainer.is_world_process_zero():
        counts = buckets.of.bincount(minlength=len(buckets.rows)).tolist()
        columns = zip(buckets.bounds.flatten().tolist(), counts, (buckets.rows * units).tolist(), strict=True)
        told = "; ".join(f"{bound}: {count:,} ({rows} a step)" for bound, count, rows in columns)
        left_out = f" {made.dropped:,} rows do not come in an epoch." if made.dropped else ""
        logger.warning("Rows by length, in buckets of at most so many tokens: %s.%s", told, left_out)
    return made
