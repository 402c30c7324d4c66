"""What was read, dropped, cut and kept, for each source and row; which rows weights draw; and sources that are none."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corebatch.errors import DataError
from corebatch.mixture.store import Block

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
        rows: Integers [4, rows]: of each kept row its source, tokens, trained tokens, and place: its number among
            all examples of all specs, from 0.
    """

    names: dict[str, int] = field(default_factory=dict)
    read: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    blank: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    rows: NDArray[np.int32] = field(default_factory=lambda: np.zeros((4, 0), np.int32))
    _blocks: list[NDArray[np.int32]] = field(default_factory=list)
    _seen: int = 0

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
        places = np.arange(self._seen, self._seen + len(kept), dtype=np.int32)
        self._seen += len(kept)
        self._blocks.append(np.stack([source, block.length, block.trained, places])[:, kept])

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
        lists: dict[str, Any] = {key: list(saved[key]) for key in _LISTS}
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
        source, length, trained, _ = (self.rows if chosen is None else self.rows[:, np.asarray(chosen)]).astype(
            np.int64
        )
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


QUANTILES = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCounts:
    """One source of a mixture.

    Attributes:
        rows_read: rows in the files.
        rows_dropped: of these, without a trained token (blank completion, or cut away): not in the data set.
        rows_blank: of the dropped rows, those that were not cut: nothing in them is to be trained.
        rows_truncated: of the rows read, those longer than `max_length`.
        rows: rows in the data set, after weights.
        tokens: tokens in these rows.
        trained_tokens: those with a loss.
        lengths: tokens a row: "min", "median", "p90", "p99", "max" of these rows.
    """

    rows_read: int
    rows_dropped: int
    rows_blank: int
    rows_truncated: int
    rows: int
    tokens: int
    trained_tokens: int
    lengths: dict[str, int]


def length_quantiles(lengths: Sequence[int]) -> dict[str, int]:
    """Quantiles that are lengths which occur (no interpolation); zeros for no rows."""
    if not len(lengths):
        return dict.fromkeys(QUANTILES, 0)
    values = np.quantile(np.asarray(lengths), list(QUANTILES.values()), method="inverted_cdf")
    return {name: int(value) for name, value in zip(QUANTILES, values, strict=True)}


def table_row(source: str, record: Any, **more: Any) -> dict[str, Any]:
    """A flat dictionary for one line of a table: the record's fields, `length_median` and so on."""
    fields = asdict(record)
    lengths = fields.pop("lengths")
    return {"source": source, **fields, **more, **{f"length_{name}": value for name, value in lengths.items()}}


logger = logging.getLogger(__name__)

MANY = 1000
FEWEST_FOR_AN_ERROR = 100


def check_sources(names: Collection[str], rows: int, source_column: str) -> None:
    """Are these sources at all?

    Args:
        names: of the sources.
        rows: that were read.

    Raises:
        DataError: at least FEWEST_FOR_AN_ERROR sources with fewer than two rows each on average.
    """
    count = len(names)
    if count >= FEWEST_FOR_AN_ERROR and 2 * count > rows:
        some = ", ".join(repr(name if len(name) <= 40 else name[:37] + "...") for name in islice(names, 3))
        raise DataError(
            f"Sources should have several rows each. Found {count:,} sources in {rows:,} rows, which are probably ids "
            f"or addresses: {some}, ... {_advice(source_column)}"
        )


def warn_of_many(names: Collection[str], rows: int, source_column: str) -> None:
    """Says so if there are more than MANY sources; arguments as `check_sources`."""
    if len(names) > MANY:
        logger.warning(
            "%s sources in %s rows: is each of them a data set? %s",
            f"{len(names):,}",
            f"{rows:,}",
            _advice(source_column),
        )


def _advice(source_column: str) -> str:
    return (
        f"Sources are named by the rows' column {source_column!r}, else by the files' names. Another column can be "
        "named by `source_column`, and one name given to all rows of a data set by `source` in its entry."
    )
