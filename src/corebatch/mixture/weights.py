"""Which rows a weight repeats or draws."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence


def weighted_rows(sources: Sequence[int], weight: float, seed: int, position: int) -> list[int]:
    """The rows of one spec after its weight: `floor(weight)` copies of all, one after another, then a draw.

    The draw takes the fraction left over from each source apart, rounded to the nearest row (half up),
    without replacement and in the rows' order, so that a weight changes no share within the spec. No source
    vanishes by a weight below 1: it keeps one row at least.

    Args:
        sources: [n] each row's source, as a number.
        weight: above 0.
        seed: of the mixture; the draw depends on it and on `position` alone.
        position: of the spec in the mixture, from 0.

    Returns:
        positions into `sources`.
    """
    copies = math.floor(weight)
    fraction = weight - copies
    rows = list(range(len(sources))) * copies
    if not fraction:
        return rows
    generator = random.Random(f"mixture weight {seed} {position}")
    members: dict[int, list[int]] = {}
    for row, source in enumerate(sources):
        members.setdefault(source, []).append(row)
    drawn: list[int] = []
    for own in members.values():
        count = math.floor(round(fraction * len(own), 9) + 0.5)
        drawn += generator.sample(own, max(count, 0 if copies else 1))
    return rows + sorted(drawn)
