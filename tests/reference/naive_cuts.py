"""Every way to cut sorted rows into contiguous pieces, one after the other: slow, and obviously all of them."""

from __future__ import annotations

from itertools import combinations, pairwise


def all_cuts(rows: int, count: int):
    """Bounds of `count` pieces, none empty, of so many rows."""
    for inner in combinations(range(1, rows), count - 1):
        yield [0, *inner, rows]


def pieces_of(bounds, each):
    """What each piece costs, of the costs of rows beside which none is longer."""
    return [each[start] * (end - start) for start, end in pairwise(bounds)]


def least_maximum(costs, widths, count, cap):
    """The least possible cost of the dearest piece, over cuts within the cap of positions."""
    return min(
        max(pieces_of(bounds, costs)) for bounds in all_cuts(len(costs), count) if max(pieces_of(bounds, widths)) <= cap
    )


def least_total(costs, widths, count, cap, most):
    """The least possible total, over cuts within both caps."""
    return min(
        sum(pieces_of(bounds, costs))
        for bounds in all_cuts(len(costs), count)
        if max(pieces_of(bounds, widths)) <= cap and max(pieces_of(bounds, costs)) <= most
    )
