"""Every example carries two integers to the step: its id and its source.

User data sets need no change. The column that names the source is read once, and two integer columns travel in its
place, since what a model does not take is dropped on the way and text cannot become a tensor.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import datasets
import torch
from torch import Tensor

from corebatch.errors import ConfigError, DataError, InputError
from corebatch.sampling.tagged import (
    SizedTaggedStream,
    Tagged,
    TaggedStream,
    check_dataset,
    check_free,
    first_row,
    with_tags,
)
from corebatch.sources import SmallSources, encode_sources, small_candidates
from corebatch.types import ID, SOURCE

DEFAULT_COLUMN, NO_COLUMN = "source", "none"
MANY = 32
"""Sources that a column may have whatever the number of examples."""


class Names(dict[int, str]):
    """Source names by their numbers; one that is not known yet goes by its number."""

    def __missing__(self, number: int) -> str:
        return f"source {number}"


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of a data set.

    Attributes:
        names: by their numbers.
        counts: how many examples each has; empty if they cannot be counted.
        note: what a user should know of them, in a sentence; empty if there is nothing.
        ids: LongTensor [N], the number of each example's source; None for a stream.
    """

    names: Names
    counts: dict[int, int]
    note: str = ""
    ids: Tensor | None = field(default=None, compare=False, repr=False)

    def small(self, policy: SmallSources) -> frozenset[int]:
        """Those that are to be kept whole, counted over the data set; see `corebatch.sources.small_candidates`."""
        return small_candidates(self.counts, self.names, policy)


def is_stream(dataset: Any) -> bool:
    """Whether rows come one after the other and cannot be asked for by number; such a data set may say its length."""
    return isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__len__")


def has_transform(dataset: Any) -> bool:
    """Whether it is a `datasets.Dataset` whose columns are made when it is read (`with_transform`)."""
    return isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom"


def tag(dataset: Any, column: str, *, needed: bool = False) -> tuple[Any, Sources]:
    """The data set with an id and a source in each example, and its sources.

    Args:
        dataset: a `datasets.Dataset`, an `IterableDataset`, or any torch data set.
        column: the name of the column that names an example's source; NO_COLUMN for a data set of one source.
        needed: whether sources were asked for; a column that happens to be called "source" may hold something else.

    Raises:
        ConfigError: the column was asked for by another name than the default and is not there.
        DataError: there is no row by number 0 or the data set is none, it has our columns already, or a source is
            neither text nor an integer.
    """
    if isinstance(dataset, torch.utils.data.IterableDataset):
        sources = Sources(names=Names(), counts={})
        kind = SizedTaggedStream if hasattr(dataset, "__len__") else TaggedStream
        return kind(dataset, partial(_of_stream, column=column, names=sources.names)), sources
    count = check_dataset(dataset)
    if isinstance(dataset, datasets.Dataset):
        check_free(dataset.column_names)
        values = _column(dataset.column_names, column, lambda: _values(dataset, column))
        ids, sources = _encode(values, count, column, needed)
        return with_tags(dataset, ids, column), sources
    first = first_row(dataset)
    values = None
    if isinstance(first, Mapping):
        check_free(first)
        values = _column(list(first), column, lambda: [_cell(dataset[i], column) for i in range(count)])
    elif column not in (DEFAULT_COLUMN, NO_COLUMN):
        raise ConfigError(
            f"coreset.source_column names {column!r}, and examples of train_dataset have no columns: each is a "
            f"{type(first).__name__}."
        )
    ids, sources = _encode(values, count, column, needed)
    return Tagged(dataset, ids), sources


def _values(dataset: datasets.Dataset, column: str) -> list[Any]:
    """A column as a list, by Arrow: a million rows at once, where `Dataset` reads them one after another."""
    values: list[Any] = dataset.with_format("arrow", columns=[column])[:].column(column).to_pylist()
    return values


def _column(present: Sequence[str], column: str, read: Callable[[], list[Any]]) -> list[Any] | None:
    if column in present and column != NO_COLUMN:
        return read()
    if column not in (DEFAULT_COLUMN, NO_COLUMN):
        raise ConfigError(
            f"coreset.source_column names {column!r}, which train_dataset has not. "
            f"Found the columns {', '.join(sorted(present))}."
        )
    return None


def _cell(row: Any, column: str) -> Any:
    return row.get(column) if isinstance(row, Mapping) else None


def _of_stream(row: Any, column: str, names: Names) -> int:
    """A row's source: sources are numbered as they come, by a stable hash, so that every process gives a name the same
    number; the names themselves are known where the loader has no worker processes."""
    values = _column(list(row), column, lambda: [_cell(row, column)]) if isinstance(row, Mapping) else None
    name = _encode(values, 1, column, True)[1].names[0]
    source = name_hash(name)
    names[source] = name
    return source


def _encode(values: list[Any] | None, count: int, column: str, needed: bool) -> tuple[Tensor, Sources]:
    if values is not None:
        values = [value.item() if isinstance(value, Tensor) else value for value in values]
    try:
        ids, names = encode_sources(values, count)
    except InputError as error:
        raise DataError(
            f"The source column ({column!r}) should hold text or integers. {error} If it is no source, name another "
            "column by coreset.source_column, or write none."
        ) from None
    if not needed and column == DEFAULT_COLUMN and len(names) > max(MANY, count // 2):
        note = (
            f"The column {column!r} has {len(names)} values in {count} examples: it is taken for something else than "
            "the source, and all examples for one source. To have it anyway, give the column another name and "
            "coreset.source_column that name; none says that there is no such column."
        )
        ids = torch.zeros(count, dtype=torch.long)
        return ids, Sources(names=Names({0: "all"}), counts={0: count}, note=note, ids=ids)
    return ids, Sources(names=Names(enumerate(names)), counts=dict(Counter(ids.tolist())), ids=ids)


class Passes:
    """Passes over a stream that several ranks share: which rows come a second time, to even out the ranks' last batch.

    Ids count up from the start of a pass, and Accelerate fills its end with rows from its start.

    Args:
        skipped: how many rows of the first pass were drawn before a checkpoint that the run is resumed from.
    """

    def __init__(self, skipped: int = 0) -> None:
        self._iterator: Any = None
        self._skipped, self._last = skipped, -1

    def start(self, iterator: Any) -> None:
        """A new pass, if this is another iterator than the last."""
        if iterator is not self._iterator:
            self._iterator, self._last = iterator, self._skipped - 1
            self._skipped = 0

    def end(self) -> None:
        """No more passes: the iterator may go, and with it the processes of its loader."""
        self._iterator = None

    def fresh(self, ids: Tensor) -> Tensor:
        """BoolTensor [n] for ids [n] of a batch: those that come after all ids of earlier batches."""
        return ids > self._last

    def seen(self, ids: Tensor) -> None:
        """The ids of the whole pool have come."""
        if len(ids):
            self._last = max(self._last, int(ids.max()))


def name_hash(name: str) -> int:
    """A stable 62-bit number for a source name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 2


def untagged(row: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A row or a batch without its ids and sources, as the model takes it."""
    return {key: value for key, value in row.items() if key not in (ID, SOURCE)}
