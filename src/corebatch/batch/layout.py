"""Which rank trains which of a step's rows in which micro-batch: found on every rank alike, without a message, since
all know the lengths of all rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

from torch import Tensor

from corebatch.batch.cuts import Cut
from corebatch.batch.pieces import SLACK, Widths, by_length, cut_rows, deal, parts_needed, split
from corebatch.batch.pool import Pool
from corebatch.distributed.balance import Shares, share, share_pieces
from corebatch.model.rows import Padding

Pieces = list[list[int]]
"""Rows of micro-batches, by their positions among the chosen; empty where a filler stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The micro-batches of a step.

    Attributes:
        shares: which rank trains each of the M chosen rows.
        pieces: of each rank, so many times as many as were asked for, the same number on all ranks.
        empty: pieces of all ranks without a row.
        filler: of this pool, the number on its rank of each rank's shortest row, which stands where a piece is empty.
        positions, largest: of the micro-batches of all ranks, and of the largest of them, fillers included.
        positions_plain, largest_plain: the same without regrouping: of the loader's own micro-batches where every row
            is trained, else of the chosen rows in the order in which they were drawn.
    """

    shares: Shares
    pieces: Sequence[Pieces]
    empty: int
    filler: Sequence[int]
    positions: int
    largest: int
    positions_plain: int
    largest_plain: int


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How rows become micro-batches in a run.

    Attributes:
        cut: the setting.
        world: how many ranks there are.
        rows: of a micro-batch as the Trainer is told, which bounds packed ones that are cut by length.
        every_row: whether the whole pool is trained, so that plain micro-batches are the loader's.
        stays: whether rows stay on the rank that drew them, but for equal numbers of rows: what scoring kept of them is
            there, or each rank's loss has a denominator of its own.
        padding: the collator's.
        longest: positions of a row that the model can take, or None.
        packed: whether micro-batches are rows without padding.
        cost: FLOPs of a row of such a width, for a cut by them.
    """

    cut: Cut
    world: int
    rows: int
    every_row: bool
    stays: bool
    padding: Padding
    longest: int | None = None
    packed: bool = False
    cost: Callable[[int], float] = float

    @cached_property
    def plain(self) -> Widths:
        """Of micro-batches as the collator would pad them."""
        return Widths(padding=self.padding, packed=self.packed)

    @cached_property
    def widths(self) -> Widths:
        """Of micro-batches as they are trained."""
        cost, padding = self.cost if self.cut.by == "flops" else float, self.padding
        if self.cut.multiple > 1:
            multiple = math.lcm(padding.multiple_of, self.cut.multiple)
            padding = replace(padding, multiple_of=multiple, longest=self.longest)
        return Widths(padding=padding, packed=self.packed, cost=cost)

    def lay_out(self, pool: Pool, chosen: Tensor, asked: int) -> Layout:
        """The micro-batches of a step.

        Args:
            chosen: LongTensor [M], positions in the pool.
            asked: how many micro-batches the Trainer of each rank asks for.

        Raises:
            DataError: a row is longer than the cap.
        """
        columns = (pool.ranks, pool.lengths, pool.sources, pool.ids)
        owners, lengths, sources, ids = (column[chosen].tolist() for column in columns)
        if self.every_row and self.cut.by != "length":
            shares = Shares(owners, owners, lengths, self.world)
        else:
            shares = share(owners, lengths, sources, self.world, balance=not self.stays)
        plain, sizes, cap = self._plain(pool, chosen, shares, asked)
        orders = [by_length(shares.of(rank), lengths, ids) for rank in range(self.world)]
        if self.cut.by == "plain":
            pieces = plain
        elif self.cut.by == "length":
            pieces = [self._equal(order, lengths, asked) for order in orders]
        elif self.stays:
            parts = max(parts_needed(self.cut, order, lengths, ids, asked, self.widths) for order in orders)
            pieces = [
                cut_rows(self.cut, order, lengths, parts * asked, self.widths, own, cap=cap)
                for order, own in zip(orders, plain, strict=True)
            ]
        else:
            pieces = self._together(by_length(range(len(ids)), lengths, ids), lengths, ids, owners, plain, cap, asked)
            trained_by = [0] * len(ids)
            for rank, own in enumerate(pieces):
                for row in chain(*own):
                    trained_by[row] = rank
            shares = Shares(owners, trained_by, lengths, self.world)
        filler = _shortest(pool, self.world)
        each = [
            self.widths.positions([lengths[row] for row in piece] or [filler[rank][0]])
            for rank, own in enumerate(pieces)
            for piece in own
        ]
        return Layout(
            shares=shares,
            pieces=pieces,
            empty=sum(not piece for piece in chain(*pieces)),
            filler=[number for _, number in filler],
            positions=sum(each),
            largest=max(each),
            positions_plain=sum(sizes),
            largest_plain=max(sizes),
        )

    def _plain(self, pool: Pool, chosen: Tensor, shares: Shares, asked: int) -> tuple[list[Pieces], list[int], int]:
        """Each rank's micro-batches as they are without regrouping, the positions of each, and how many of a regrouped
        one are no more than those of the largest."""
        lengths, numbers = shares.lengths, pool.rows[chosen].tolist()
        if self.every_row:
            batches, wide = pool.batches[chosen].tolist(), pool.widths[chosen].tolist()
            of = [[list[int]() for _ in range(asked)] for _ in range(self.world)]
            for row in sorted(range(len(numbers)), key=lambda row: numbers[row]):
                of[shares.owners[row]][batches[row]].append(row)
            made = [piece for piece in chain(*of) if piece]
            sizes = [self.plain.positions([lengths[row] for row in piece]) for piece in made]
            caps = [self.widths.positions([lengths[row] for row in piece]) for piece in made]
            if not self.widths.packed:  # a collator may pad all batches to one width
                sizes = [len(piece) * wide[piece[0]] for piece in made]
                caps = [max(size, cap) for size, cap in zip(sizes, caps, strict=True)]
            return of, sizes, max(caps)
        of = []
        for rank in range(self.world):
            drawn = sorted(shares.of(rank), key=lambda row: (numbers[row], shares.owners[row]))
            of.append(split(drawn, asked))
        made = [piece for piece in chain(*of) if piece]
        sizes = [self.plain.positions([lengths[row] for row in piece]) for piece in made]
        if self.widths.packed:
            return of, sizes, max(sizes)
        return of, sizes, max(map(len, made)) * self.widths.of(max(lengths))

    def _equal(self, order: Sequence[int], lengths: Sequence[int], asked: int) -> Pieces:
        """Sorted rows in equal numbers; packed ones in numbers that make their tokens equal."""
        if self.widths.packed:
            return deal(order, lengths, asked, max(self.rows, -(-len(order) // asked)))
        return split(order, asked)

    def _together(
        self,
        order: Sequence[int],
        lengths: Sequence[int],
        ids: Sequence[int],
        owners: Sequence[int],
        plain: Sequence[Pieces],
        cap: int,
        asked: int,
    ) -> list[Pieces]:
        """The rows of all ranks cut as one, and the pieces given to the ranks."""
        world, cut, widths = self.world, self.cut, self.widths
        count = world * asked
        count *= parts_needed(cut, order, lengths, ids, count, widths)
        slack = SLACK if world == 1 else 0.0  # ranks wait for each other
        made = cut_rows(cut, order, lengths, count, widths, list(chain(*plain)), cap=cap, slack=slack)
        each = [[lengths[row] for row in piece] for piece in made]
        work = [(widths.work(rows), float(sum(rows))) for rows in each]
        homes = [[sum(owners[row] == rank for row in piece) for rank in range(world)] for piece in made]
        return [[made[number] for number in own] for own in share_pieces(work, homes)]


def _shortest(pool: Pool, world: int) -> list[tuple[int, int]]:
    """(tokens, number there) of each rank's shortest row of the pool."""
    of = defaultdict[int, list[tuple[int, int]]](list)
    for rank, length, number in zip(pool.ranks.tolist(), pool.lengths.tolist(), pool.rows.tolist(), strict=True):
        of[rank].append((length, number))
    return [min(of[rank]) for rank in range(world)]
