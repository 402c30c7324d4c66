"""Times of arms that are measured in turn, so that whatever else the machine does falls on all alike.

A round is every arm once; a ratio of times is taken within a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Arms = TypeVar("Arms")


@dataclass(frozen=True, slots=True)
class Spread:
    """Of several rounds: the median, the least and the greatest."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))

    def times(self, factor: float) -> Spread:
        return Spread(self.value * factor, self.low * factor, self.high * factor)


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Of two arms' times, within each round."""
    return [one / other for one, other in zip(over, under, strict=True)]


def turned(arms: Sequence[Arms], number: int) -> list[Arms]:
    """The arms of a round, by its number; the order turns from round to round, so that none is always the first."""
    turn = number % len(arms)
    return [*arms[turn:], *arms[:turn]]
