"""The rows of a spec as canonical examples with their source, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from corebatch.errors import DataError
from corebatch.mixture.formats import Canonical, Form, canonical, detect_form, used_columns
from corebatch.mixture.reading import read_parts
from corebatch.mixture.rows import Part, RawRow
from corebatch.mixture.spec import DatasetSpec

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Example:
    """A row in its canonical form, its source, and where it was read."""

    row: Canonical
    source: str
    where: str


def read_examples(spec: DatasetSpec, source_column: str) -> Iterator[Example]:
    """All rows of a spec.

    A row's source is `spec.source` if given; else the row's own `source_column` where it is there and not
    null; else the file's or data set's name.

    Raises:
        DataError: whatever cannot be read or used, an empty file, or a spec without any row.
    """
    empty = True
    for part in read_parts(spec):
        for example in _part_examples(part, spec, source_column):
            empty = False
            yield example
    if empty:
        split = f" (split {spec.split!r})" if spec.split else ""
        raise DataError(f"{spec.label}{split}: should have at least one row. Found none.")


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _part_examples(part: Part, spec: DatasetSpec, source_column: str) -> Iterator[Example]:
    form: Form | None = None
    for raw in part.rows(used_columns(source_column)):
        if form is None:
            form = detect_form(part.reader.columns or tuple(raw.values), raw.where)
        source = spec.source or _own_source(raw, source_column) or part.default_source
        yield Example(canonical(raw.values, raw.where, form), source, raw.where)
    if form is None:
        raise DataError(f"{part.reader.label}: should have at least one row. Found none.")


def _own_source(raw: RawRow, source_column: str) -> str | None:
    value = raw.values.get(source_column)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(
            f"{raw.where}: the source in column {source_column!r} should be a non-empty string. Found {value!r}."
        )
    return str(value)
