"""The pool of all ranks: what is known of every row, on every rank alike, which rank trains which of the chosen rows,
and the rows that change ranks for it.

Only numbers of fixed types travel: features, losses, ids, sources, lengths; and the chosen rows beyond a rank's share.

Shape suffixes: N rows of the pool over all ranks, n rows on this rank, M chosen rows, P features, W ranks.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from corebatch.errors import DataError
from corebatch.scoring import Scores
from corebatch.trainer.ranks import Ranks
from corebatch.types import ID

COLUMNS = ("ids", "sources", "lengths", "tokens", "eligible")
BALANCED = 0.05
"""Ranks whose tokens are within this part of their mean are left as they are: balancing them further moves rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What is known of the pool's rows before any is scored, in the order of their global example ids.

    Attributes:
        ids, sources, lengths, tokens, ranks, rows: LongTensor [N] on the CPU: example id, source, tokens without
            padding, trained tokens, the rank that holds the row, and its number there.
        eligible: BoolTensor [N] on the CPU: False for copies that a loader adds to even out ranks; they are scored
            (every rank runs the same forwards) but cannot be chosen.
    """

    ids: Tensor
    sources: Tensor
    lengths: Tensor
    tokens: Tensor
    ranks: Tensor
    rows: Tensor
    eligible: Tensor


def gather_pool(ranks: Ranks, columns: Mapping[str, Tensor], counts: Sequence[int]) -> Pool:
    """Joins the rows of all ranks and sorts them by example id; of equal ids the first rank's is eligible.

    Args:
        columns: integers [n] of this rank's rows, named as in COLUMNS.
        counts: every rank's n.
    """
    mine = torch.arange(counts[ranks.index])
    integers = torch.stack([*(columns[name].cpu().long() for name in COLUMNS), mine], dim=1)
    integers = ranks.gather_rows(integers, counts, "columns").cpu()
    holders = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    # By id; of equal ids the eligible copy first, then the lower rank's.
    order = torch.sort(integers[:, 4], descending=True, stable=True).indices
    order = order[torch.sort(integers[order, 0], stable=True).indices]
    integers, holders = integers[order], holders[order]
    ids, sources, lengths, tokens, eligible, rows = integers.unbind(dim=1)
    first = torch.ones(len(ids), dtype=torch.bool)
    first[1:] = ids[1:] != ids[:-1]
    return Pool(
        ids=ids,
        sources=sources,
        lengths=lengths,
        tokens=tokens,
        ranks=holders,
        rows=rows,
        eligible=first & eligible.bool(),
    )


def gather_scores(ranks: Ranks, pool: Pool, wanted: Tensor, mine: Scores) -> Scores:
    """Features and losses of the pool's rows `wanted`, on every rank.

    Args:
        pool: of all ranks.
        wanted: LongTensor of positions in the pool, ascending.
        mine: scores of those that this rank holds, in the same order; of no rows where it holds none.
    """
    if ranks.count == 1:
        return mine
    parts = [mine.features] if mine.losses is None else [mine.features, mine.losses.unsqueeze(1)]
    numbers = torch.cat([part.to(mine.features.dtype) for part in parts], dim=1)
    holders = pool.ranks[wanted]
    gathered = ranks.gather_rows(numbers, torch.bincount(holders, minlength=ranks.count).tolist(), "features")
    # Rank by rank as it came; each rank's rows are in the pool's order already.
    order = torch.sort(holders, stable=True).indices
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    gathered = gathered[back.to(gathered.device)]
    width = mine.features.shape[1]
    return Scores(
        features=gathered[:, :width],
        losses=None if mine.losses is None else gathered[:, width],
        tokens=pool.tokens[wanted],
    )


@dataclass(frozen=True, slots=True)
class Shares:
    """Which rank trains each of the M chosen rows.

    Attributes:
        owners: the rank that holds each row.
        trained_by: the rank that trains it.
        lengths: tokens of each row.
        world: W.
    """

    owners: Sequence[int]
    trained_by: Sequence[int]
    lengths: Sequence[int]
    world: int

    @property
    def moving(self) -> list[int]:
        """The rows, by their positions among the M, that change ranks."""
        return [p for p, (a, b) in enumerate(zip(self.owners, self.trained_by, strict=True)) if a != b]

    def of(self, rank: int) -> list[int]:
        """The rows that a rank trains, by their positions among the M."""
        return [p for p, owner in enumerate(self.trained_by) if owner == rank]

    @property
    def imbalance(self) -> float:
        """How many more tokens the busiest rank trains than the mean of ranks, as a part of that mean."""
        tokens = [sum(self.lengths[p] for p in self.of(rank)) for rank in range(self.world)]
        return max(tokens) * self.world / sum(tokens) - 1 if sum(tokens) else 0.0


def share(
    owners: Sequence[int], lengths: Sequence[int], sources: Sequence[int], world: int, *, balance: bool = True
) -> Shares:
    """Gives every chosen row to a rank so that ranks have equal numbers (within one) and near-equal tokens.

    First the rows beyond a rank's share move, as few as there can be: of a rank's rows those of which the tokens that
    are left come nearest to the mean, and among them those of a source that piles up there. Then pairs of rows change
    places while that brings the ranks' tokens nearer to each other than within BALANCED of their mean.

    Args:
        owners: the rank that holds each of the M chosen rows.
        lengths: tokens of each.
        sources: source of each.
        world: W.
        balance: whether rows may change ranks for the balance of tokens alone.
    """
    held = Counter(owners)
    target = [len(owners) // world + (rank < len(owners) % world) for rank in range(world)]
    # The ranks that hold most get the larger shares, so that nothing moves for the remainder's sake.
    for size, rank in zip(sorted(target, reverse=True), sorted(range(world), key=lambda r: -held[r]), strict=True):
        target[rank] = size
    plan = _Plan(list(owners), lengths, sources, world)
    for _ in range(sum(max(0, held[rank] - target[rank]) for rank in range(world))):
        plan.move_one(target)
    if balance:
        plan.swap_pairs()
    return Shares(owners, plan.trained_by, lengths, world)


@dataclass(slots=True)
class _Plan:
    """`share` under way."""

    trained_by: list[int]
    lengths: Sequence[int]
    sources: Sequence[int]
    world: int
    tokens: list[int] = field(init=False)
    piles: list[set[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.piles = [set() for _ in range(self.world)]
        for position, rank in enumerate(self.trained_by):
            self.piles[rank].add(position)
        self.tokens = [sum(self.lengths[p] for p in pile) for pile in self.piles]

    @property
    def mean(self) -> float:
        return sum(self.tokens) / self.world

    def move_one(self, target: Sequence[int]) -> None:
        """Moves one row from the rank that is most above its share to the one that is most below."""
        over = [len(pile) - size for pile, size in zip(self.piles, target, strict=True)]
        giver = max(range(self.world), key=lambda r: (over[r], self.tokens[r], -r))
        taker = min(range(self.world), key=lambda r: (over[r], self.tokens[r], r))
        # What each of the rows that must still go or come should be, for the tokens to end at the mean.
        wanted = ((self.tokens[giver] - self.mean) / over[giver] + (self.mean - self.tokens[taker]) / -over[taker]) / 2
        here, even = Counter(self.sources[p] for p in self.piles[giver]), Counter(self.sources)

        def rank_of(position: int) -> tuple[bool, float, int]:
            source = self.sources[position]
            piles_up = here[source] > math.ceil(even[source] / self.world)
            return not piles_up, abs(self.lengths[position] - wanted), position

        self._give(min(self.piles[giver], key=rank_of), taker)

    def swap_pairs(self) -> None:
        """Swaps a row of the busiest rank for a shorter one of the idlest, while they are too far apart."""
        for _ in range(2 * self.world):
            high = max(range(self.world), key=lambda r: (self.tokens[r], -r))
            low = min(range(self.world), key=lambda r: (self.tokens[r], r))
            apart = self.tokens[high] - self.tokens[low]
            if max(self.tokens[high] - self.mean, self.mean - self.tokens[low]) <= BALANCED * self.mean:
                return
            if not self.piles[low]:
                return
            ours, theirs = sorted(self.piles[high]), sorted(self.piles[low])
            gain = torch.tensor([self.lengths[p] for p in ours]).unsqueeze(1) - torch.tensor(
                [self.lengths[p] for p in theirs]
            )
            left = (apart - 2 * gain).abs()
            best = int(left.argmin())
            if int(left.flatten()[best]) >= apart:
                return
            a, b = ours[best // len(theirs)], theirs[best % len(theirs)]
            self._give(a, low)
            self._give(b, high)

    def _give(self, position: int, taker: int) -> None:
        giver = self.trained_by[position]
        self.piles[giver].remove(position)
        self.piles[taker].add(position)
        self.tokens[giver] -= self.lengths[position]
        self.tokens[taker] += self.lengths[position]
        self.trained_by[position] = taker


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
