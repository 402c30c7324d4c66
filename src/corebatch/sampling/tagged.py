"""Data sets whose examples carry an id and a source: tables with or without transforms, torch data sets, streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
import xxhash
from torch import Tensor

from corebatch.errors import ConfigError, DataError
from corebatch.types import ID, SOURCE

SEEN_ROWS = 64
"""The first rows of a stream by which ranks know that they read the same one."""


@dataclass(frozen=True, slots=True)
class TaggedRow:
    """An example that is no dictionary, with its id and source beside it; `SourceCollator` takes them apart."""

    row: Any
    id: int
    source: int


def tagged_row(row: Any, number: int, source: int) -> Any:
    """A dictionary gets two more keys, so that the Trainer can drop columns from it; anything else is wrapped."""
    if isinstance(row, dict):
        check_free(row)
        return {**row, ID: number, SOURCE: source}
    return TaggedRow(row, number, source)


def check_free(columns: Iterable[str]) -> None:
    """Raises DataError for a data set that has columns called like ours."""
    taken = sorted({ID, SOURCE} & set(columns))
    if taken:
        raise DataError(
            f"corebatch adds the columns {ID} and {SOURCE} to each example. Found that train_dataset has "
            f"{' and '.join(taken)} already: rename or remove it."
        )


def check_dataset(dataset: Any) -> int:
    """The number of examples of a data set with rows by number.

    Raises:
        DataError: it is a dictionary of data sets, has no length or no rows by number, or no examples.
    """
    kind = type(dataset).__name__
    if isinstance(dataset, Mapping):
        raise DataError(
            f"train_dataset should be one data set. Found a {kind} of {', '.join(map(str, dataset)) or 'none'}: pass "
            "one of them."
        )
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"train_dataset should have a length and rows by number (__len__ and __getitem__), or be an "
            f"IterableDataset. Found {kind}."
        )
    if len(dataset) == 0:
        raise DataError("train_dataset should have examples. Found none.")
    return len(dataset)


def first_row(dataset: Any) -> Any:
    """Row 0.

    Raises:
        DataError: there is none, as in a table of pandas, whose items are columns.
    """
    try:
        return dataset[0]
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"train_dataset should give its first example as row 0. Found {type(error).__name__}: {error} from "
            f"{type(dataset).__module__}.{type(dataset).__name__}. (A table of pandas: datasets.Dataset.from_pandas.)"
        ) from error


def with_tags(dataset: datasets.Dataset, source_ids: Tensor, column: str) -> datasets.Dataset:
    """A `datasets.Dataset` with the two columns, and its format or transform as before."""
    held = dataset.format
    present, restricted = dataset.column_names, held["columns"]
    kind, options = held["type"], dict(held["format_kwargs"])
    if kind == "custom":  # with_transform: it is given its columns and returns others
        options["transform"] = Carried(options["transform"], column)
    tagged = dataset.add_column(ID, np.arange(len(dataset))).add_column(SOURCE, source_ids.numpy())
    if kind is None and set(restricted) == set(present):
        return tagged
    every = held["output_all_columns"]
    return tagged.with_format(kind, columns=[*restricted, ID, SOURCE], output_all_columns=every, **options)


class Carried:
    """A data set's transform, with ids and sources led around it.

    Args:
        transform: of a batch, a dictionary of lists.
        column: that names the source.
    """

    def __init__(self, transform: Callable[[Any], Any], column: str) -> None:
        self.transform, self.column = transform, column

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        tags = {key: batch[key] for key in (ID, SOURCE) if key in batch}
        rest = {key: value for key, value in batch.items() if key not in tags}
        made = self.transform(rest)
        if not tags:  # somebody reads one column
            return made
        rows = len(tags[ID])
        if not isinstance(made, Mapping) or any(len(values) != rows for values in made.values()):
            found = {k: len(v) for k, v in made.items()} if isinstance(made, Mapping) else type(made).__name__
            raise DataError(
                f"The transform of train_dataset should give a row for each row, so that each has an id. Found {found} "
                f"for {rows} rows."
            )
        check_free(made)
        if self.column in made and self.column not in rest:
            raise ConfigError(
                f"The transform of train_dataset makes the column {self.column!r}, and sources are read before "
                "training, from the data set's own columns. Add the column by map(), or set coreset.source_column to "
                "none."
            )
        return {**made, **tags}


class Tagged(torch.utils.data.Dataset[Any]):
    """Any data set with rows by number; its attributes show through, for samplers of one's own."""

    def __init__(self, dataset: Any, source_ids: Tensor) -> None:
        self.dataset, self.source_ids = dataset, source_ids

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("dataset", "source_ids"):  # asked for while a copy is being made
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return tagged_row(self.dataset[index], int(index), int(self.source_ids[index]))

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """What torch's loader asks for where a data set reads several rows at a time."""
        several = getattr(self.dataset, "__getitems__", None)
        rows = several(indices) if callable(several) else [self.dataset[index] for index in indices]
        return [tagged_row(row, int(i), int(self.source_ids[i])) for row, i in zip(rows, indices, strict=True)]


class TaggedStream(torch.utils.data.IterableDataset[Any]):
    """Ids count from the start of each pass, in each worker process in steps of the number of workers.

    Args:
        dataset: the stream.
        source: gives the number of a row's source.

    Attributes:
        seen: LongTensor [SEEN_ROWS] in memory that worker processes share: hashes of the first rows that were read.
    """

    def __init__(self, dataset: Any, source: Callable[[Any], int]) -> None:
        self.dataset, self.source = dataset, source
        self.seen = torch.zeros(SEEN_ROWS, dtype=torch.long).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number, row in enumerate(self.dataset):
            place = first + every * number
            if place < SEEN_ROWS and not self.seen[place]:
                self.seen[place] = row_hash(row) >> 1 | 1  # 0: not read
            yield tagged_row(row, place, self.source(row))


class SizedTaggedStream(TaggedStream):
    """A stream that says how long it is."""

    def __len__(self) -> int:
        return len(self.dataset)


def row_hash(row: Any) -> int:
    """64 bits of a row of plain values, arrays and tensors, the same in every process; of its type alone where it holds
    something that has no order or no text."""
    try:
        text = json.dumps(row, sort_keys=True, default=_listed)
    except (TypeError, ValueError):
        text = type(row).__qualname__
    return int(xxhash.xxh3_64(text.encode("utf-8", "surrogatepass")).intdigest())


def _listed(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return f"{type(value).__module__}.{type(value).__qualname__}"
