"""What goes into a step on one rank, and what comes out.

Shape suffixes: N rows of the large batch, M of the small, n on this rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from corebatch.batch.pool import Pool
from corebatch.batch.weights import LossWeights
from corebatch.distributed.balance import Shares
from corebatch.distributed.exchange import RowFormat, exchange_rows
from corebatch.distributed.ranks import Ranks
from corebatch.model.rows import Padding, put_together, row_spans, take_rows, trained_tokens
from corebatch.types import ID, SOURCE


class Clock(Protocol):
    """What a step tells how far it is."""

    def end(self, phase: str) -> None:
        """The time since the last call was spent on `phase`."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the pool's rows lie in a micro-batch; no tensor, so that nobody moves it to the device or counts it.

    Attributes:
        rows: LongTensor [k, 4] on the CPU: position in the pool (negative: none), batch row, start, end.
    """

    rows: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRows:
    """This rank's part of the pool.

    Attributes:
        batches: collated, padded, with ids and sources.
        eligible: BoolTensor [n]: False for copies that even out ranks.
        counts: n of every rank.
        padding: how rows are put together again.
        repeats: whether an example that comes twice is trained twice.
    """

    batches: Sequence[dict[str, Tensor]]
    eligible: Tensor
    counts: Sequence[int]
    padding: Padding
    repeats: bool = False

    def columns(self) -> dict[str, Tensor]:
        """What travels of each row before scoring."""
        spans = torch.cat([row_spans(batch) for batch in self.batches])
        sizes = torch.tensor([len(batch[ID]) for batch in self.batches])
        return {
            "ids": torch.cat([batch[ID] for batch in self.batches]),
            "sources": torch.cat([batch[SOURCE] for batch in self.batches]),
            "lengths": spans[:, 1] - spans[:, 0],
            "tokens": torch.cat([trained_tokens(batch["labels"]) for batch in self.batches]),
            "eligible": self.eligible,
            "batches": torch.arange(len(sizes)).repeat_interleave(sizes),
            "widths": torch.tensor([b["input_ids"].shape[1] for b in self.batches]).repeat_interleave(sizes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallBatch:
    """What a rank trains.

    Attributes:
        micro_batches: as many as were asked for, or where a cap asks for more so many times as many.
        weights: of the chosen rows of all ranks.
        pool_ids, chosen, passed: example ids: of the pool, of what is trained, of what could have been; all ranks'.
        selected: the selector's weights of `chosen`; None: all are one.
        line: of the record, as far as it is known before training.
    """

    micro_batches: list[dict[str, Any]]
    weights: LossWeights
    pool_ids: Tensor
    chosen: list[int]
    passed: list[int]
    selected: list[float] | None
    line: dict[str, Any]


def filled(
    ranks: Ranks,
    row_format: RowFormat,
    batches: Sequence[dict[str, Tensor]],
    eligible: Tensor,
    counts: Sequence[int],
    padding: Padding,
    device: torch.device,
) -> tuple[Sequence[dict[str, Tensor]], Tensor, list[int]]:
    """Gives the ranks without rows a copy of another's first row, so that they run the same forwards; it is scored and
    cannot be chosen."""
    nobody = [rank for rank, count in enumerate(counts) if not count]
    giver = next(rank for rank, count in enumerate(counts) if count)
    row = take_rows(batches, [0])[0] if batches else None
    length = int(ranks.report(None, len(row["input_ids"]) if row else 0)[giver])
    moves = [(giver, rank, length) for rank in nobody]
    leaving = {number: row for number in range(len(moves))} if row and ranks.index == giver else {}
    for copy in exchange_rows(ranks, row_format, moves, leaving, device).values():
        batches, eligible = [put_together([copy], padding)], torch.tensor([False])
    return batches, eligible, [max(1, count) for count in counts]


def held_rows(
    ranks: Ranks,
    row_format: RowFormat,
    rows: LocalRows,
    pool: Pool,
    chosen: Tensor,
    shares: Shares,
    device: torch.device,
) -> dict[int, Mapping[str, Tensor]]:
    """The rows that this rank trains, by their positions among the M: its own, and what came from others.

    Args:
        chosen: LongTensor [M], positions in the pool.
        shares: which rank trains which.
        device: of the rows.
    """
    rank, moving = ranks.index, shares.moving

    def take(positions: Sequence[int]) -> list[dict[str, Tensor]]:
        return take_rows(rows.batches, [int(pool.rows[chosen[p]]) for p in positions], row_format.by_token)

    arrived = {}
    if moving:
        leaving = [number for number, p in enumerate(moving) if shares.owners[p] == rank]
        going = dict(zip(leaving, take([moving[number] for number in leaving]), strict=True))
        moves = [(shares.owners[p], shares.trained_by[p], shares.lengths[p]) for p in moving]
        came = exchange_rows(ranks, row_format, moves, going, device)
        arrived = {moving[number]: row for number, row in came.items()}
    stay = [p for p in shares.of(rank) if p not in arrived]
    return {**arrived, **dict(zip(stay, take(stay), strict=True))}
