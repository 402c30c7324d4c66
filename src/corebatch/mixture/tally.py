"""What is counted while a mixture is made: by source what was read, dropped and cut, and three integers of each row."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corebatch.errors import DataError
from corebatch.mixture.blocks import Block
from corebatch.mixture.counts import SourceCounts, length_quantiles

logger = logging.getLogger(__name__)

FILE = "tally.npy"


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts of a mixture before weights.

    Attributes:
        names: source -> its number, in order of first appearance.
        read, dropped, blank, truncated: by source, of the rows in the files; blank: dropped, though not cut.
        ends: for each spec the number of kept rows up to its end.
        unused: as Mixture.unused_columns.
        rows: Integers [3, rows]: of each kept row its source, tokens, and trained tokens.
    """

    names: dict[str, int] = field(default_factory=dict)
    read: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    blank: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    rows: NDArray[np.int32] = field(default_factory=lambda: np.zeros((3, 0), np.int32))
    _blocks: list[NDArray[np.int32]] = field(default_factory=list)

    def add(self, block: Block) -> None:
        """Counts the rows of one block."""
        numbers = np.array([self.names.setdefault(name, len(self.names)) for name in block.names], np.int32)
        source = numbers[block.source]
        kept = block.trained > 0
        for column, counted in (
            (self.read, source),
            (self.dropped, source[~kept]),
            (self.blank, source[~kept & (block.truncated == 0)]),
            (self.truncated, source[block.truncated > 0]),
        ):
            column += [0] * (len(self.names) - len(column))
            for number, count in zip(*np.unique(counted, return_counts=True), strict=True):
                column[number] += int(count)
        self._blocks.append(np.stack([source, block.length, block.trained])[:, kept])

    def end_spec(self) -> None:
        """Tells that the rows that follow are the next spec's."""
        self.rows = np.concatenate([self.rows, *self._blocks], axis=1)
        self._blocks = []
        self.ends.append(self.rows.shape[1])

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the rows' integers into a folder; returns the rest, for JSON."""
        np.save(folder / FILE, self.rows)
        return {"names": list(self.names), **{key: getattr(self, key) for key in _LISTS}}

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> Tally:
        """What `save` wrote and returned; the integers are mapped, not read."""
        names = {name: number for number, name in enumerate(saved["names"])}
        lists = {key: list(saved[key]) for key in _LISTS}
        return cls(names=names, rows=np.load(folder / FILE, mmap_mode="r"), **lists)

    def check(self, max_length: int) -> None:
        """Raises DataError if a source has no rows left."""
        rows = np.bincount(self.rows[0], minlength=len(self.names))
        for name, number in self.names.items():
            if not rows[number]:
                raise DataError(
                    f"The source {name!r} has no rows left: of {self.read[number]} read, {self.dropped[number]} have "
                    f"no trained token within max_length = {max_length}. Raise max_length, or look whether answers "
                    "are blank."
                )

    def counts(self, max_length: int, chosen: Sequence[int] | None) -> dict[str, SourceCounts]:
        """By source, of the chosen rows (None: all)."""
        source, length, trained = (self.rows if chosen is None else self.rows[:, np.asarray(chosen)]).astype(np.int64)
        order = np.argsort(source, kind="stable")
        ends = np.cumsum(np.bincount(source, minlength=len(self.names)))
        counts = {}
        for name, number in self.names.items():
            own = order[ends[number - 1] if number else 0 : ends[number]]
            counts[name] = SourceCounts(
                rows_read=self.read[number],
                rows_dropped=self.dropped[number],
                rows_blank=self.blank[number],
                rows_truncated=self.truncated[number],
                rows=len(own),
                tokens=int(length[own].sum()),
                trained_tokens=int(trained[own].sum()),
                lengths=length_quantiles(length[own].tolist()),
            )
        dropped, cut = sum(self.dropped), sum(self.truncated)
        if dropped or cut:
            logger.info("of %d rows, %d cut at %d tokens, %d dropped", sum(self.read), cut, max_length, dropped)
        return counts


_LISTS = ("read", "dropped", "blank", "truncated", "ends")


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
