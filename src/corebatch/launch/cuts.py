"""Whether a mixture's rows fit under the cap of a cut into micro-batches, and what the cut saves: from their lengths,
before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corebatch.batch.layout import Cutting, Layout
from corebatch.batch.pool import Pool
from corebatch.errors import ConfigError
from corebatch.mixture import row_lengths
from corebatch.model.rows import Padding
from corebatch.seeds import seeded
from corebatch.trainer import CoresetConfig

STEPS = 64
"""Steps that are drawn to see what a cut saves."""


def check_cap(coreset: CoresetConfig, dataset: Any) -> None:
    """Raises ConfigError for a cap on a micro-batch's positions below the longest row, with the row's number.

    Args:
        dataset: of a mixture.
    """
    most, multiple = coreset.cut.most, coreset.cut.multiple
    if most is None or not len(dataset):
        return
    lengths = row_lengths(dataset)
    number = int(lengths.argmax())
    longest = int(lengths[number])
    if (width := -(-longest // multiple) * multiple) > most:
        rounded = f", which are rounded up to {width:,}" if width > longest else ""
        raise ConfigError(
            f"coreset.micro_batches.most should leave room for the longest row. Found {most:,} positions, and row "
            f"{number:,} of the mixture ({dataset[number]['source']}) with {longest:,} tokens{rounded}. Raise it, or "
            "cut rows off (max_length)."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Micro-batches of steps that were drawn at random: as without regrouping, and as they are cut.

    Attributes:
        steps: how many were drawn.
        tokens: in all.
        positions, positions_plain: in all, padding included.
        largest, largest_plain: positions of the largest micro-batch.
        parts: in how many parts a micro-batch of the Trainer's loop is trained, at most.
    """

    steps: int
    tokens: int
    positions: int
    positions_plain: int
    largest: int
    largest_plain: int
    parts: int


def saved(coreset: CoresetConfig, lengths: NDArray[np.int32], args: Any, cost: Callable[[int], float] = float) -> Saved:
    """What a cut makes of a mixture, by steps of rows drawn at random, as a loader and an unbiased choice draw them.

    Args:
        lengths: tokens of every row.
        args: the TrainingArguments: rows of a micro-batch, micro-batches of a step, ranks.
        cost: FLOPs of a row of such a width, for a cut by them.
    """
    asked = args.gradient_accumulation_steps
    size = args.per_device_train_batch_size * asked * max(args.world_size, 1)
    draws = drawn_at_random(len(lengths), size, coreset.seed)
    layouts = [lay_out(coreset, lengths, rows, args, asked=asked, cost=cost) for rows in draws]
    tokens = sum(int(lengths[rows.numpy()].sum(dtype=np.int64)) for rows in draws)
    return Saved(
        steps=STEPS,
        tokens=tokens,
        positions=sum(each.positions for each in layouts),
        positions_plain=sum(each.positions_plain for each in layouts),
        largest=max(each.largest for each in layouts),
        largest_plain=max(each.largest_plain for each in layouts),
        parts=max(len(each.pieces[0]) for each in layouts) // asked,
    )


def drawn_at_random(rows: int, size: int, seed: int) -> list[Tensor]:
    """The rows of STEPS steps of `size` each: LongTensor [size], numbers below `rows`."""
    draws = []
    for step in range(STEPS):
        generator = seeded(seed, step, "cuts")
        # Of very many rows hardly one comes twice.
        ids = torch.randint(rows, (size,), generator=generator)
        if rows <= 2**20:
            ids = torch.randperm(rows, generator=generator)[torch.arange(size) % rows]
        draws.append(ids)
    return draws


def lay_out(
    coreset: CoresetConfig,
    lengths: NDArray[np.int32],
    rows: Tensor,
    args: Any,
    *,
    asked: int,
    cost: Callable[[int], float] = float,
) -> Layout:
    """The micro-batches of a step that trains some rows of a mixture.

    Args:
        lengths: tokens of every row of the mixture.
        rows: LongTensor [M], those that the step trains, in the loader's order.
        args: the TrainingArguments.
        asked: micro-batches of a step on each rank, of equally many rows.
        cost: as for `saved`.
    """
    world = max(args.world_size, 1)
    each = len(rows) // (asked * world)
    cutting = Cutting(
        cut=coreset.cut, world=world, rows=each, every_row=coreset.pool_factor == 1, stays=False,
        padding=Padding(token=0), packed=coreset.padding_free is True, cost=cost,
    )  # fmt: skip
    place = torch.arange(len(rows))
    on_rank = place % (each * asked)
    drawn = torch.from_numpy(lengths[rows.numpy()].astype(np.int64))
    widths = drawn.view(-1, each).amax(dim=1).repeat_interleave(each)
    pool = Pool(
        ids=rows, sources=torch.zeros_like(rows), lengths=drawn, tokens=drawn, ranks=place // (each * asked),
        rows=on_rank, batches=on_rank // each, widths=widths, eligible=torch.ones_like(rows, dtype=torch.bool),
    )  # fmt: skip
    return cutting.lay_out(pool, place, asked)
