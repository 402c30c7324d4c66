"""The rows of a spec as canonical examples with their source, in order."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from corebatch.errors import ConfigError, DataError
from corebatch.mixture.columns import Columns
from corebatch.mixture.formats import Canonical, Chat, Completion, Form, canonical
from corebatch.mixture.keys import number
from corebatch.mixture.reading import read_parts
from corebatch.mixture.rows import Part
from corebatch.mixture.spec import DatasetSpec

Item = TypeVar("Item")
logger = logging.getLogger(__name__)

SHOWN = 5
LOOKED_AT = 1000
"""Rows of a file in which a column is looked for."""


@dataclass(frozen=True, slots=True)
class Example:
    """A row in its canonical form, its source, where it was read, and how much it counts. `values`: its cells under our
    names, and `form` the name of their form, where whole rows were asked for."""

    row: Canonical
    source: str
    where: str
    weight: float = 1.0
    values: Mapping[str, Any] | None = None
    form: str = ""


def read_examples(
    spec: DatasetSpec,
    source_column: str,
    unused: dict[str, tuple[str, ...]] | None = None,
    weight_column: str | None = None,
    *,
    whole: bool = False,
) -> Iterator[Example]:
    """All rows of a spec; `whole`: with all of their cells.

    A row's source is `spec.source` if given; else the row's own `source_column` where it is there and not null; else
    the file's or data set's name. Rows of a file with a `weight_column` count by it, those of others once. `unused`,
    once all rows are read: the spec's label -> its columns (and "messages.NAME" of turns) to which nothing here gives a
    meaning.

    A file without rows among others with rows (Spark writes such shards) is told of. Raises DataError: whatever cannot
    be read or used, or a spec without any row.
    """
    columns, parts = Columns.of(spec, source_column, weight_column), read_parts(spec)
    empty, empty_files = True, []
    for part in parts:
        example = None
        for example in _part_examples(part, spec, columns, whole):
            empty = False
            yield example
        if example is None:
            empty_files.append(part.reader.label)
    if empty and len(parts) == 1 and not spec.split:
        raise DataError(f"{empty_files[0]}: should have at least one row. Found none.")
    if unused is not None and columns.unused:
        unused[spec.label] = tuple(sorted({*unused.get(spec.label, ()), *columns.unused}))
    if empty:
        split = f" (split {spec.split!r})" if spec.split else ""
        raise DataError(f"{spec.label}{split}: should have at least one row. Found none.")
    if empty_files:
        shown = ", ".join(empty_files[:SHOWN]) + (" and more" if len(empty_files) > SHOWN else "")
        logger.warning("%s: %d of %d files have no rows: %s.", spec.label, len(empty_files), len(parts), shown)
    columns.check_ignored(spec.label)


def check_column(specs: Iterable[DatasetSpec], column: str, key: str) -> None:
    """Raises ConfigError for a column that was asked for by its name and is in none of the first rows of any file."""
    found: set[str] = set()
    for spec in specs:
        if column in spec.columns:
            return
        for part in read_parts(spec):
            for raw in islice(part.rows(Columns.of(spec, column).wanted()), LOOKED_AT):
                if raw.values.get(column) is not None:
                    return
                found |= raw.values.keys()
    raise ConfigError(
        f"coreset.{key} names {column!r}, which none of the first {LOOKED_AT:,} rows of any file has. "
        f"Found the columns {', '.join(sorted(found))}."
    )


def one_answer_each(
    examples: Iterable[Example], each: Callable[[Canonical, str], list[Canonical]]
) -> Iterator[Example]:
    """The examples, with those that `each` makes several rows of as several."""
    for example in examples:
        for row in each(example.row, example.where):
            yield Example(row, example.source, example.where, example.weight)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _part_examples(part: Part, spec: DatasetSpec, columns: Columns, whole: bool) -> Iterator[Example]:
    form: Form | None = None
    stated = part.reader.columns
    seen: set[str] = set()
    weighed = False
    for raw in part.rows(None if whole else columns.wanted()):
        if form is None:
            form = columns.form(stated or tuple(raw.values), raw.where)
            columns.note(stated or (), form, raw.where)
            weighed = columns.columns.get(columns.weight_column or "", columns.weight_column) in raw.values
        if stated is None and not raw.values.keys() <= seen:
            seen.update(raw.values)
            columns.note(raw.values, form, raw.where)
        values = columns.row(raw, form, from_table=stated is not None)
        source = spec.source or _own_source(values, columns.source_column, raw.where) or part.default_source
        weight = _own_weight(values, columns.weight_column, raw.where, weighed)
        row = canonical(values, raw.where, form)
        yield Example(row, source, raw.where, weight, values if whole else None, form.name if whole else "")


def _own_source(values: Mapping[str, Any], source_column: str, where: str) -> str | None:
    value = values.get(source_column)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(
            f"{where}: the source in column {source_column!r} should be a non-empty string. Found {value!r}. "
            "Another column is named by `source_column`; or give the `source` of the data set."
        )
    return str(value)


def _own_weight(values: Mapping[str, Any], column: str | None, where: str, weighed: bool) -> float:
    """How much a row counts; in a file with the column (`weighed`) each row has one."""
    if column is None or (not weighed and column not in values):
        return 1.0
    value = number(values.get(column))
    if not weighed or not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        found = f"{values.get(column)!r}" + ("" if weighed else ", and none in the first row of the file")
        raise DataError(
            f"{where}: {column!r} (coreset.weight_column) should be a finite number of at least 0 in every row of a "
            f"file that has it. Found {found}."
        )
    return float(value)


Found = dict[str, tuple[int, str, str]]
"""Label of a data set -> how many of its rows hold such a text, the first such text, and where it stands."""


def special_texts(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds the texts of the tokenizer's special tokens; None if it has none."""
    texts = {token for token in tokenizer.all_special_tokens if token.strip()}
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None


def counted(
    examples: Iterable[Example], label: str, special: re.Pattern[str] | None, wrapped: bool, found: Found
) -> Iterator[Example]:
    """The examples, while those are counted in `found` of which a turn holds the text of a special token.

    Args:
        label: of the data set.
        special: see `special_texts`.
        wrapped: whether prompts and completions are put into the chat template; where not, their special tokens are
            the user's own template.
    """
    for example in examples:
        if special is not None:
            match = next(filter(None, map(special.search, _contents(example.row, wrapped))), None)
            if match is not None:
                count, token, where = found.get(label, (0, match.group(), example.where))
                found[label] = (count + 1, token, where)
        yield example


def _contents(row: Any, wrapped: bool) -> Iterator[str]:
    if isinstance(row, Chat):
        yield from (text for message in row.messages if isinstance(text := message.get("content"), str))
    elif wrapped and isinstance(row, Completion):
        yield from (row.prompt, row.completion)
