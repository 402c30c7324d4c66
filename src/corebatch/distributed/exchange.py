"""Rows that change ranks: how one is written as bytes, and the one exchange of them.

Only values of fixed types travel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corebatch.distributed.ranks import Ranks
from corebatch.errors import DataError
from corebatch.types import ID


@dataclass(frozen=True, slots=True)
class _Entry:
    """One key of a row: its type, the shape of a value, and whether there is one for each token or one for the row."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    by_token: bool

    def numbers(self, length: int) -> int:
        return math.prod(self.shape) * (length if self.by_token else 1)


class RowFormat:
    """How a row without padding is written as bytes: key after key in alphabetical order. The same on all ranks."""

    def __init__(self, entries: Mapping[str, _Entry]) -> None:
        self.entries = dict(sorted(entries.items()))

    @classmethod
    def of(cls, batches: Sequence[Mapping[str, Tensor]]) -> RowFormat:
        """The format of a rank's batches, which have the same keys; empty where there are none."""
        if not batches:
            return cls({})
        entries = {}
        for key, value in batches[0].items():
            by_token = all(b[key].ndim > 1 and b[key].shape[1] == b["input_ids"].shape[1] for b in batches)
            entries[key] = _Entry(value.dtype, tuple(value.shape[2 if by_token else 1 :]), by_token)
        return cls(entries)

    def agree(self, ranks: Ranks) -> RowFormat:
        """The format of all ranks; a rank without rows takes it from the others.

        Raises:
            DataError: two ranks' rows have other keys, types or shapes; on every rank.
        """
        text = {k: [str(e.dtype).removeprefix("torch."), list(e.shape), e.by_token] for k, e in self.entries.items()}
        found = ranks.gather_texts(json.dumps(text) if text else "")
        known = {rank: other for rank, other in enumerate(found) if other}
        first = min(known)
        for rank, other in known.items():
            if other != known[first]:
                raise DataError(
                    f"Rows of all ranks should have the same keys, types and shapes. Found {known[first]} on rank "
                    f"{first} and {other} on rank {rank}."
                )
        return RowFormat(
            {k: _Entry(getattr(torch, d), tuple(shape), by) for k, (d, shape, by) in json.loads(known[first]).items()}
        )

    @property
    def by_token(self) -> dict[str, bool]:
        """Which keys have a value for each token."""
        return {key: entry.by_token for key, entry in self.entries.items()}

    def check(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Raises DataError unless batches have this format's keys and types."""
        for batch in batches:
            found = {key: value.dtype for key, value in sorted(batch.items())}
            if found != {key: entry.dtype for key, entry in self.entries.items()}:
                wanted = ", ".join(f"{key} {entry.dtype}" for key, entry in self.entries.items())
                shown = ", ".join(f"{key} {dtype}" for key, dtype in found.items())
                raise DataError(
                    f"Every batch should have the keys and types of the first: {wanted}. Found {shown} in the batch of "
                    f"examples {batch[ID][:8].tolist()}."
                )

    def size(self, length: int) -> int:
        """Bytes of a row of `length` tokens."""
        return sum(entry.numbers(length) * entry.dtype.itemsize for entry in self.entries.values())

    def write(self, row: Mapping[str, Tensor]) -> Tensor:
        """uint8 Tensor on the CPU."""
        parts = [row[key].detach().cpu().contiguous().reshape(-1).view(torch.uint8) for key in self.entries]
        written, wanted = torch.cat(parts), self.size(len(row["input_ids"]))
        if len(written) != wanted or row.keys() != self.entries.keys():
            shapes = {key: tuple(value.shape) for key, value in row.items()}
            raise DataError(
                f"A row of {len(row['input_ids'])} tokens should take {wanted} bytes in the keys "
                f"{', '.join(self.entries)}. Found {shapes} in example {int(row[ID])}."
            )
        return written

    def read(self, data: Tensor, length: int, device: torch.device) -> dict[str, Tensor]:
        """The row that `write` wrote."""
        row, start = {}, 0
        for key, entry in self.entries.items():
            end = start + entry.numbers(length) * entry.dtype.itemsize
            shape = (length, *entry.shape) if entry.by_token else entry.shape
            # a copy is aligned, which a slice of bytes is not
            row[key] = data[start:end].clone().view(entry.dtype).reshape(shape).to(device)
            start = end
        return row


def exchange_rows(
    ranks: Ranks,
    row_format: RowFormat,
    moves: Sequence[tuple[int, int, int]],
    mine: Mapping[int, Mapping[str, Tensor]],
    device: torch.device,
) -> dict[int, dict[str, Tensor]]:
    """Moves rows between ranks, in one exchange of bytes.

    Args:
        moves: (from rank, to rank, tokens) of each row that moves, the same list on every rank.
        mine: of the rows that leave this rank, by their position in `moves`.
        device: of the rows.

    Returns:
        The rows that came here, by their position in `moves`, without padding.
    """
    nothing = torch.zeros(0, dtype=torch.uint8)
    outgoing, incoming = [[nothing] for _ in range(ranks.count)], [0] * ranks.count
    for number, (giver, taker, length) in enumerate(moves):
        if giver == ranks.index:
            outgoing[taker].append(row_format.write(mine[number]))
        if taker == ranks.index:
            incoming[giver] += row_format.size(length)
        ranks.sent["rows"] += row_format.size(length)
    received = ranks.exchange([torch.cat(parts) for parts in outgoing], incoming)
    arrived, done = {}, [0] * ranks.count
    for number, (giver, taker, length) in enumerate(moves):
        if taker == ranks.index:
            data = received[giver][done[giver] : done[giver] + row_format.size(length)]
            arrived[number] = row_format.read(data, length, device)
            done[giver] += len(data)
    return arrived
