"""Which rank trains which of the chosen rows, so that ranks have equal work.

Shape suffixes: M chosen rows, W ranks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

BALANCED = 0.05
"""Ranks whose tokens are within this part of their mean are left as they are: balancing them further moves rows."""
BALANCED_WORK = 0.005
"""The same of pieces, which move anyhow."""


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


def share_pieces(work: Sequence[tuple[float, ...]], homes: Sequence[Sequence[int]]) -> list[list[int]]:
    """Gives pieces, of which each becomes a micro-batch, to ranks: equal numbers, near-equal work, few rows that move.

    Pieces of like work form a round, in which every rank has one, so that ranks that wait for each other at every
    micro-batch wait little. Within a round a rank gets the piece of which it holds most; then two ranks swap theirs
    while that brings their sums nearer to each other, until no sum is further from another than BALANCED_WORK of the
    mean.

    Args:
        work: of each of the pieces, a multiple of W, in one or several measures that should all be near-equal; rounds
            go by the first.
        homes: how many rows of each piece each rank holds, [pieces][W].

    Returns:
        The pieces of each rank, ascending.
    """
    world, measures = len(homes[0]), range(len(work[0]))
    order = sorted(range(len(work)), key=lambda number: (-work[number][0], number))
    rounds = [_at_home(order[start : start + world], homes) for start in range(0, len(order), world)]
    means = [max(sum(each[m] for each in work) / world, 1e-9) for m in measures]
    sums = [[sum(work[each[rank]][m] for each in rounds) / means[m] for m in measures] for rank in range(world)]
    for _ in range(4 * len(work)):
        ends = [
            (max((sums[r][m], r) for r in range(world)), min((sums[r][m], r) for r in range(world))) for m in measures
        ]
        apart, high, low = max((most - least, a, b) for (most, a), (least, b) in ends)
        if apart <= BALANCED_WORK:
            break

        def left(number: int, high: int = high, low: int = low) -> float:
            gains = (work[rounds[number][high]][m] - work[rounds[number][low]][m] for m in measures)
            return max(
                abs(sums[high][m] - sums[low][m] - 2 * gain / means[m]) for m, gain in zip(measures, gains, strict=True)
            )

        best = min(range(len(rounds)), key=left)
        if left(best) >= apart:
            break
        each = rounds[best]
        for m in measures:
            gain = (work[each[high]][m] - work[each[low]][m]) / means[m]
            sums[high][m], sums[low][m] = sums[high][m] - gain, sums[low][m] + gain
        each[high], each[low] = each[low], each[high]
    return [sorted(each[rank] for each in rounds) for rank in range(world)]


def _at_home(pieces: Sequence[int], homes: Sequence[Sequence[int]]) -> list[int]:
    """A piece for each rank, most at home first: of which the rank holds most rows."""
    given: dict[int, int] = {}
    ranks = range(len(pieces))
    for _, rank, number in sorted((-homes[number][rank], rank, number) for number in pieces for rank in ranks):
        if rank not in given and number not in given.values():
            given[rank] = number
    return [given[rank] for rank in ranks]


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
