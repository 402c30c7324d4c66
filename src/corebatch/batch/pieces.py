"""Rows cut into pieces, each of which becomes a micro-batch: equal numbers of rows, or about equal positions.

A padded piece costs its rows times what a row of its width costs. Of rows sorted by length the least total for a number
of pieces is found exactly, by dynamic programming: the cost of a run of rows is Monge, so that the best last cut of
more rows, and of more pieces, never lies further left (Yao 1980, Efficient dynamic programming using quadrangle
inequalities; Knuth 1971, Optimum binary search trees).

What is least. The least maximum keeps the largest micro-batch near the mean and costs more positions in all; the least
total lets the largest grow to about twice the mean. So the least total is taken among cuts whose largest piece is
within a tenth of the least maximum (`SLACK`): nearly the least of either. Where ranks wait for each other the largest
piece is time too, and there is no slack. docs/evidence/measurements.md has what that leaves on a real mixture.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from corebatch.batch.cuts import Cut
from corebatch.errors import DataError
from corebatch.model.rows import Padding
from corebatch.selectors.kernels.compile import Kernel

SLACK = 0.1
"""How far above the least maximum the largest piece may be where that makes the total smaller."""
EVEN = 1e-3
"""How much a piece's share of the cap adds to its cost: of cuts of like totals the evenest is taken."""

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """What rows of so many tokens take in a micro-batch.

    Attributes:
        padding: rounds widths up; of packed rows it is not used.
        packed: whether a micro-batch is one row without padding.
        cost: of a row of such a width, growing with it; by default its positions.
    """

    padding: Padding
    packed: bool = False
    cost: Callable[[int], float] = float

    def of(self, length: int) -> int:
        """Positions of a row beside which none is longer."""
        return length if self.packed else self.padding.width(length)

    def positions(self, lengths: Sequence[int]) -> int:
        """Of a micro-batch of rows of such lengths; 0 of none."""
        return sum(lengths) if self.packed else len(lengths) * self.of(max(lengths, default=0))

    def work(self, lengths: Sequence[int]) -> float:
        """What a micro-batch costs; 0 of no rows."""
        if self.packed:
            return sum(map(self.cost, lengths))
        return len(lengths) * self.cost(self.of(max(lengths))) if lengths else 0.0


def split(order: Sequence[int], count: int) -> list[list[int]]:
    """`order` cut into `count` pieces of near-equal size, the larger ones first."""
    base, more = divmod(len(order), count)
    sizes = [base + (number < more) for number in range(count)]
    return [list(order[start:end]) for start, end in pairwise(accumulate(sizes, initial=0))]


def deal(
    order: Sequence[int], costs: Sequence[float] | Mapping[int, float], count: int, most: int | None = None
) -> list[list[int]]:
    """Rows dealt to `count` piles of like costs, at most `most` rows each; none is empty if avoidable.

    Each row goes to the pile of the least cost that still has room, the first of equals. With the dearest row first
    this is the rule "longest processing time" (Graham 1969, Bounds on multiprocessing timing anomalies).

    Args:
        order: numbers of rows, the dearest first.
        costs: of each row, above 0.
        most: None: as many as come.
    """
    piles: list[list[int]] = [[] for _ in range(count)]
    open_piles = [(0.0, number) for number in range(count)]
    for row in order:
        cost, number = heapq.heappop(open_piles)
        piles[number].append(row)
        if most is None or len(piles[number]) < most:
            heapq.heappush(open_piles, (cost + costs[row], number))
    return piles


def by_length(rows: Sequence[int], lengths: Sequence[int], ids: Sequence[int]) -> list[int]:
    """Rows, the longest first; the order of equally long rows is that of their example ids."""
    return sorted(rows, key=lambda row: (-lengths[row], ids[row]))


def parts_needed(
    cut: Cut, order: Sequence[int], lengths: Sequence[int], ids: Sequence[int], count: int, widths: Widths
) -> int:
    """The smallest whole k for which rows fit into k x `count` pieces of at most `cut.most` positions.

    Args:
        order: numbers of rows, the longest first.
        lengths, ids: tokens and example id of each row.

    Raises:
        DataError: a row alone has more positions than that; names it.
    """
    if cut.most is None or not order:
        return 1
    longest = widths.of(lengths[order[0]])
    if longest > cut.most:
        raise DataError(
            f"A micro-batch should have at most {cut.most:,} positions (coreset.micro_batches.most). Found that "
            f"example {ids[order[0]]} of the train set alone has {longest:,}, of {lengths[order[0]]:,} tokens. Raise "
            "the cap, or cut rows off (max_length)."
        )
    if not widths.packed:
        each = [widths.of(lengths[row]) for row in order]
        return -(-len(_filled(each, each, cut.most, cut.most)) // count)
    parts = -(-sum(lengths[row] for row in order) // (cut.most * count))
    while max(sum(lengths[row] for row in pile) for pile in deal(order, lengths, parts * count)) > cut.most:
        parts += 1  # ends: with a pile for each row at the latest
    return parts


def cut_rows(
    cut: Cut,
    order: Sequence[int],
    lengths: Sequence[int],
    count: int,
    widths: Widths,
    plain: Sequence[Sequence[int]],
    *,
    cap: int,
    slack: float = SLACK,
) -> list[list[int]]:
    """`count` pieces by positions or FLOPs, those of the longest rows first; with fewer rows than pieces the last ones
    are empty, otherwise none is.

    Args:
        order: numbers of rows, the longest first.
        lengths: tokens of each row.
        plain: pieces as they are without regrouping, whose positions are within the cap if rows fit into `count`.
        cap: positions of a piece, at most.
        slack: see `SLACK`.
    """
    cap = cap if cut.most is None else min(cap, cut.most)
    if len(order) <= count:
        return [[row] for row in order] + [[] for _ in range(count - len(order))]
    if widths.packed:
        costs_by_row = {row: widths.cost(lengths[row]) for row in order}
        for sizes in (costs_by_row, lengths):  # like FLOPs may be unlike tokens, of which there is a cap
            made = deal(order, sizes, count)
            if all(sum(lengths[row] for row in pile) <= cap for pile in made):
                return made
        # Of more pieces than plain ones the last has what `parts_needed` found to be within `cut.most`.
        return [list(piece) for piece in plain] if len(plain) == count else made
    each = [widths.of(lengths[row]) for row in order]
    costs = [widths.cost(width) for width in each]
    found = cheapest_cut(costs, each, count, cap=cap, slack=slack)
    return [list(order[start:end]) for start, end in pairwise(found)]


# ---- sorted rows in contiguous pieces ------------------------------------------------------------------------------


def cheapest_cut(
    costs: Sequence[float], widths: Sequence[int], count: int, *, cap: float, slack: float = SLACK
) -> list[int]:
    """Where pieces of sorted rows start, and where the last ends: of the cuts into `count` pieces, none empty, none
    above `cap` positions, with a largest piece near the least possible, the one of the least total cost. Where equal
    numbers of rows cost less in all, that bound on the largest piece is dropped.

    Args:
        costs, widths: of a row beside which none is longer, falling; at least `count` rows.
        cap: positions of a piece, at most; large enough for some cut.
    """
    low, high = max(costs[0], sum(costs) / count), costs[0] * len(costs)
    while high > low * 1.001:
        middle = (low + high) / 2
        if len(_filled(widths, costs, cap, middle)) <= count:
            high = middle
        else:
            low = middle

    def total(bounds: Sequence[int]) -> float:
        return sum(costs[start] * (end - start) for start, end in pairwise(bounds))

    steps = [len(piece) for piece in split(range(len(costs)), count)]
    equal = list(accumulate(steps, initial=0))
    within = all(widths[start] * (end - start) <= cap for start, end in pairwise(equal))
    given = np.asarray(costs, np.float64), np.asarray(widths, np.int64), count, float(cap)
    found: list[int] = _least(*given, high * (1 + slack), EVEN / high).tolist()
    if within and total(found) > total(equal):
        found = _least(*given, np.inf, 0.0).tolist()
    return found


def _filled(widths: Sequence[float], costs: Sequence[float], cap: float, most: float) -> list[int]:
    """Where pieces start if each takes as many of the sorted rows as it can hold: the fewest pieces."""
    starts, row = [], 0
    while row < len(widths):
        starts.append(row)
        row += max(1, int(min(cap // widths[row], most // costs[row])))
    return starts


def least_loop(costs_N: _Floats, widths_N: _Ints, count: int, cap: float, most: float, even: float) -> _Ints:
    """Where pieces of sorted rows start, int64 [count + 1] with the end: `count` pieces, none empty, of the least sum
    of c + even c^2, c being a piece's cost, among those of at most `cap` positions and a cost of at most `most`.

    Args:
        costs_N, widths_N: of a row beside which none is longer, falling.
    """
    rows = len(costs_N)
    first_N = np.zeros(rows + 1, np.int64)  # the earliest start of a piece that ends before row j
    start = 0
    for end in range(1, rows + 1):
        while widths_N[start] * (end - start) > cap or costs_N[start] * (end - start) > most * (1 + 1e-9):
            start += 1
        first_N[end] = start
    least_N = np.full(rows + 1, np.inf)
    least_N[0] = 0.0
    starts_KN = np.zeros((count + 1, rows + 1), np.int64)
    for pieces in range(1, count + 1):
        now_N = np.full(rows + 1, np.inf)
        last = rows - 1  # the last piece of more rows starts no earlier
        for end in range(rows - count + pieces, pieces - 1, -1):
            earliest = max(first_N[end], starts_KN[pieces - 1, end], pieces - 1)
            for start in range(earliest, min(last, end - 1) + 1):
                cost = costs_N[start] * (end - start)
                total = least_N[start] + cost + even * cost * cost
                if total < now_N[end]:
                    now_N[end] = total
                    starts_KN[pieces, end] = start
            if now_N[end] < np.inf:
                last = starts_KN[pieces, end]
        least_N = now_N
    bounds = np.zeros(count + 1, np.int64)
    bounds[count] = rows
    for pieces in range(count, 0, -1):
        bounds[pieces - 1] = starts_KN[pieces, bounds[pieces]]
    return bounds


_least = Kernel(least_loop, least_loop)
"""In Python alone the same loop takes some milliseconds for 128 rows in 16 pieces."""
