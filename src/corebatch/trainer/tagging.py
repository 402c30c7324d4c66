"""Every example carries two integers to the step: its id and its source.

User data sets need no change. The column that names the source is read once, and two integer columns travel in its
place, since what a model does not take is dropped on the way and text cannot become a tensor.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from corebatch.errors import ConfigError, DataError, InputError
from corebatch.sources import SmallSources, encode_sources, small_candidates

ID, SOURCE = "corebatch_id", "corebatch_source"
PLACES = "corebatch_places"
"""Where the pool's rows lie in a micro-batch; see `repack.micro_batches`."""
DEFAULT_COLUMN = "source"


class Names(dict[int, str]):
    """Source names by their numbers; one that is not known yet goes by its number."""

    def __missing__(self, number: int) -> str:
        return f"source {number}"


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of a data set: their names, and how many examples each has (empty if it cannot be counted)."""

    names: Names
    counts: dict[int, int]

    def small(self, policy: SmallSources) -> frozenset[int]:
        """Those that may be kept whole, counted over the data set; see `corebatch.sources.small_candidates`."""
        return small_candidates(self.counts, self.names, policy)


def tag(dataset: Any, column: str) -> tuple[Any, Sources]:
    """The data set with an id and a source in each example, and its sources.

    Args:
        dataset: a `datasets.Dataset`, an `IterableDataset`, or any torch data set of dictionaries.
        column: the name of the column that names an example's source.

    Raises:
        ConfigError: the column was asked for by another name than the default and is not there.
        DataError: the data set is empty, or a source is neither text nor an integer.
    """
    if isinstance(dataset, datasets.Dataset):
        if len(dataset) == 0:
            raise DataError("train_dataset should have examples. Found none.")
        ids, sources = _encode(_column(dataset.column_names, column, lambda: _values(dataset, column)), len(dataset))
        present, restricted = dataset.column_names, dataset.format["columns"]
        kind, options = dataset.format["type"], dataset.format["format_kwargs"]
        dataset = dataset.add_column(ID, np.arange(len(dataset))).add_column(SOURCE, ids.numpy())
        if kind is not None or set(restricted) != set(present):
            dataset = dataset.with_format(kind, columns=[*restricted, ID, SOURCE], **options)
        return dataset, sources
    if isinstance(dataset, torch.utils.data.IterableDataset):
        sources = Sources(names=Names(), counts={})
        return _TaggedStream(dataset, column, sources.names), sources
    if len(dataset) == 0:
        raise DataError("train_dataset should have examples. Found none.")
    first = dataset[0]
    if not isinstance(first, Mapping):
        raise DataError(f"train_dataset should give dictionaries. Found {type(first).__name__}.")
    values = _column(list(first), column, partial(_read, dataset, column))
    ids, sources = _encode(values, len(dataset))
    return _Tagged(dataset, ids), sources


def _values(dataset: datasets.Dataset, column: str) -> list[Any]:
    """A column as a list, by Arrow: a million rows at once, where `Dataset` reads them one after another."""
    values: list[Any] = dataset.with_format("arrow", columns=[column])[:].column(column).to_pylist()
    return values


def _read(dataset: Any, column: str) -> list[Any]:
    return [dataset[i][column] for i in range(len(dataset))]


def _column(present: Sequence[str], column: str, read: Callable[[], list[Any]]) -> list[Any] | None:
    if column in present:
        return read()
    if column != DEFAULT_COLUMN:
        raise ConfigError(
            f"coreset.source_column names {column!r}, which train_dataset has not. "
            f"Found the columns {', '.join(sorted(present))}."
        )
    return None


def _encode(values: list[Any] | None, count: int) -> tuple[Tensor, Sources]:
    if values is not None:
        values = [value.item() if isinstance(value, Tensor) else value for value in values]
    try:
        ids, names = encode_sources(values, count)
    except InputError as error:
        raise DataError(f"The source column should hold text or integers. {error}") from None
    return ids, Sources(names=Names(enumerate(names)), counts=dict(Counter(ids.tolist())))


class _Tagged(torch.utils.data.Dataset[Any]):
    def __init__(self, dataset: Any, source_ids: Tensor) -> None:
        self.dataset, self.source_ids = dataset, source_ids

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], ID: int(index), SOURCE: int(self.source_ids[index])}


class _TaggedStream(torch.utils.data.IterableDataset[Any]):
    """Ids count from the start of each pass, in each worker process in steps of the number of workers.

    Source names are numbered as they come, by a stable hash, so that every process gives a name the same number; the
    names themselves are known where the loader has no worker processes."""

    def __init__(self, dataset: Any, column: str, names: Names) -> None:
        self.dataset, self.column, self.names = dataset, column, names

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number, row in enumerate(self.dataset):
            _, sources = _encode(_column(list(row), self.column, partial(_cell, row, self.column)), 1)
            name = sources.names[0]
            source = name_hash(name)
            self.names[source] = name
            yield {**row, ID: first + every * number, SOURCE: source}


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

    def fresh(self, ids: Tensor) -> Tensor:
        """BoolTensor [n] for ids [n] of a batch: those that come after all ids of earlier batches."""
        return ids > self._last

    def seen(self, ids: Tensor) -> None:
        """The ids of the whole pool have come."""
        if len(ids):
            self._last = max(self._last, int(ids.max()))


def _cell(row: Mapping[str, Any], column: str) -> list[Any]:
    return [row[column]]


def name_hash(name: str) -> int:
    """A stable 62-bit number for a source name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 2


def untagged(row: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A row or a batch without its ids and sources, as the model takes it."""
    return {key: value for key, value in row.items() if key not in (ID, SOURCE)}


class SourceCollator:
    """Takes ids and sources out of the examples, calls the user's collator, and adds them as LongTensors [B].

    Also drops the source column where it got as far as here (evaluation without column removal): text cannot become
    a tensor.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], column: str) -> None:
        self.collator, self.column = collator, column

    def __getattr__(self, name: str) -> Any:
        """The user's collator shows through: its padding settings, for instance."""
        if name.startswith("__") or name == "collator":  # asked for while a copy is being made
            raise AttributeError(name)
        return getattr(self.collator, name)

    def __call__(self, examples: list[Any]) -> Any:
        if not examples or not isinstance(examples[0], Mapping):
            return self.collator(examples)
        tags = [(int(row[ID]), int(row[SOURCE])) for row in examples if ID in row]
        dropped = {ID, SOURCE} | ({self.column} if isinstance(examples[0].get(self.column), str) else set())
        rows = [{k: v for k, v in row.items() if k not in dropped} for row in examples]
        try:
            batch = self.collator(rows)
        except Exception as error:
            if not tags:
                raise
            raise DataError(self._unfit([tag[0] for tag in tags], rows, error)) from error
        if tags:
            batch[ID] = torch.tensor([tag[0] for tag in tags])
            batch[SOURCE] = torch.tensor([tag[1] for tag in tags])
        return batch

    def _unfit(self, ids: list[int], rows: list[Any], error: Exception) -> str:
        """Which examples the collator fails on: those that it also fails on alone; else one without which it does not
        fail; else all."""
        bad = [number for number, row in zip(ids, rows, strict=True) if not self._makes([row])]
        if not bad:
            others = (ids[i] for i in range(len(ids)) if self._makes(rows[:i] + rows[i + 1 :]))
            bad = list(others) or ids
        return (
            f"The collator ({type(self.collator).__name__}) should make a batch of examples "
            f"{', '.join(map(str, bad))} of the train set. Found {type(error).__name__}: {error}"
        )

    def _makes(self, rows: list[Any]) -> bool:
        try:
            self.collator(rows)
        except Exception:
            return False
        return True
