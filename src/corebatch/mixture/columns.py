"""A file's columns -> ours: renamed by `columns`, left out by `ignore_columns`, and nothing lost in silence."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from corebatch.errors import ConfigError, DataError
from corebatch.mixture.cells import given, without_nulls
from corebatch.mixture.formats import FORMS, Form, detect_form
from corebatch.mixture.keys import KNOWN_OF_ROWS, KNOWN_OF_TURNS, TEMPLATE_OPTIONS, TOOLS, refusal
from corebatch.mixture.names import SPLIT_WORDS
from corebatch.mixture.rows import RawRow
from corebatch.mixture.spec import DatasetSpec
from corebatch.mixture.turns import as_list
from corebatch.options import near

OF_FORMS = frozenset(name for form in FORMS for name in form.columns + form.optional)
KNOWN = OF_FORMS | frozenset(KNOWN_OF_ROWS) | {"split"}
WITHOUT_ANSWERS = ("text", "tokens")
NEVER_LOST = ("weight", "sample_weight", "chosen", "rejected", "tools", "system")
OF_TURNS = ("messages", "conversations", "prompt", "completion")
NESTED = (*OF_TURNS, *TOOLS, *TEMPLATE_OPTIONS, "documents", "history")


@dataclass(slots=True)
class Columns:
    """The columns of one data set, and which of them no row's tokens come from.

    Attributes:
        columns: our name -> the file's.
        ignored: names of columns, and of keys of turns, that are left out on purpose.
        source_column: holds a row's source, under our name.
        weight_column: holds how much a row counts, under our name, or None.
        unused: names seen in rows, or in turns as "messages.NAME", to which nothing here gives a meaning.
        found: all names seen in rows and, if some are ignored, in turns.
        split: the first that a part's rows state in a column `split`, and where; None: none does so far.
    """

    columns: Mapping[str, str]
    ignored: frozenset[str]
    source_column: str
    weight_column: str | None = None
    unused: set[str] = field(default_factory=set)
    found: set[str] = field(default_factory=set)
    split: tuple[str, str] | None = None

    @classmethod
    def of(cls, spec: DatasetSpec, source_column: str, weight_column: str | None = None) -> Columns:
        """Of one entry of `datasets:`. Raises ConfigError: `columns` has a name that nothing here reads."""
        known = KNOWN | {source_column} | ({weight_column} if weight_column else set())
        for name in spec.columns:
            if name not in known:
                raise ConfigError(
                    f"datasets: `columns` of {spec.label} should map names known here, such as prompt: question. "
                    f"Found {name!r}{near(name, known)}. Known are {', '.join(sorted(known))}."
                )
        return cls(dict(spec.columns), frozenset(spec.ignore_columns), source_column, weight_column)

    def wanted(self) -> frozenset[str]:
        """The file's columns that have to be read."""
        return (KNOWN | self._of_rows | frozenset(self.columns.values())) - self.ignored

    def form(self, found: Collection[str], where: str) -> Form:
        """The form of a part with the columns found in the file. Raises DataError: no form fits, or a column that
        `columns` names is not there."""
        for ours, theirs in self.columns.items():
            if theirs not in found:
                raise DataError(
                    f"{where}: `columns` maps {ours} to {theirs!r}, which is not there{near(theirs, found)}. "
                    f"Found {', '.join(map(repr, found)) or 'none'}."
                )
        self.split = None
        form = detect_form(list(self.names(found)), where)
        used = (*form.columns, *form.optional, *self._of_rows, *KNOWN_OF_ROWS)
        for ours, theirs in self.columns.items():
            if ours not in used:
                raise DataError(
                    f"{where}: `columns` maps {ours} to {theirs!r}, which rows of the form {form.name} do not use. "
                    f"They use {', '.join((*form.columns, *form.optional))}."
                )
        return form

    def note(self, found: Collection[str], form: Form, where: str) -> None:
        """Remembers the columns found in the file, and which of them no row of this form uses. Raises DataError: one of
        them is a known name in other capitals or with other marks."""
        self.found |= set(found)
        known = {*form.columns, *form.optional, *(() if form.name in WITHOUT_ANSWERS else NEVER_LOST)}
        own = set(found) - self.ignored - set(self.columns.values())
        if (written := otherwise_written(sorted(own), known - set(found) - self.columns.keys())) is not None:
            theirs, ours = written
            raise DataError(
                f"{where}: the column {theirs!r} is {ours!r} written otherwise, and would not be used. Take it by "
                f"`columns: {{{ours}: {theirs}}}` of the data set, or leave it out on purpose: "
                f"`ignore_columns: [{theirs}]`."
            )
        used = {self.columns.get(name, name) for name in (*form.columns, *form.optional, *self._of_rows)}
        shadowed = {name for name in self.columns if name in found and name not in self.columns.values()}
        self.unused |= (set(found) - used - self.ignored - KNOWN_OF_ROWS.keys()) | shadowed

    def row(self, raw: RawRow, form: Form, from_table: bool) -> Mapping[str, Any]:
        """The row's cells under our names; `from_table`: without the nulls that Arrow fills into nested cells. Raises
        DataError: a known key that says something and would be lost."""
        values = {ours: raw.values[theirs] for ours, theirs in self.names(raw.values).items()}
        for ours in form.columns:
            if ours not in values and ours in self.columns:
                found = ", ".join(map(repr, raw.values)) or "none"
                raise DataError(f"{raw.where}: the column {self.columns[ours]!r} ({ours}) is missing. Found {found}.")
        self._refuse_lost(values, form, raw.where)
        self._refuse_splits(values.get("split"), raw.where)
        for name in OF_TURNS:
            self._set_turns(values, name, form, raw.where)
        if form.name not in WITHOUT_ANSWERS and all(name in values for name in form.columns):
            refuse_rivals(values, (*form.columns, *form.optional, self.source_column), form.name, raw.where)
        if from_table:
            values |= {name: without_nulls(values[name]) for name in NESTED if name in values}
        return values

    @property
    def _of_rows(self) -> frozenset[str]:
        """What says something of a row beside its form."""
        return frozenset({self.source_column} | ({self.weight_column} if self.weight_column else set()))

    def names(self, found: Collection[str]) -> dict[str, str]:
        """Our name -> the file's, of all columns but those left out and those taken under another name."""
        taken = set(self.columns.values())
        names = {name: name for name in found if name not in taken and name not in self.ignored}
        return names | {ours: theirs for ours, theirs in self.columns.items() if theirs in found}

    def _refuse_lost(self, values: Mapping[str, Any], form: Form, where: str) -> None:
        for name in KNOWN_OF_ROWS.keys() & values.keys():
            key = KNOWN_OF_ROWS[name]
            if name in form.columns or name in form.optional or name in self._of_rows:
                continue
            if key.says_something(values[name]) and not (key.of_answers and form.name in WITHOUT_ANSWERS):
                raise DataError(refusal(where, name, key, form.name))
            if given(values[name]):
                self.unused.add(self.columns.get(name, name))

    def _refuse_splits(self, value: Any, where: str) -> None:
        """A file whose rows state several splits would be trained with its test rows."""
        split = SPLIT_WORDS.get(value.strip().lower()) if isinstance(value, str) else None
        if split is None or self.source_column == "split":
            return
        first, there = self.split = self.split or (split, where)
        if split != first:
            raise DataError(
                f"{where}: the column 'split' says {split!r}, and {first!r} in {there}: rows of several splits in one "
                "file. Write a file of each; or use all of them on purpose: `ignore_columns: [split]` of the data set."
            )

    def check_ignored(self, label: str) -> None:
        """Once all rows are read: raises DataError for a name of `ignore_columns` that none of them had."""
        for name in sorted(self.ignored - self.found):
            raise DataError(
                f"{label}: `ignore_columns` names {name!r}, which no row and no turn has{near(name, self.found)}. "
                f"Found {', '.join(map(repr, sorted(self.found))) or 'none'}."
            )

    def _set_turns(self, values: dict[str, Any], name: str, form: Form, where: str) -> None:
        """The cell's turns as a list, without the keys that are ignored; prompts that are strings stay."""
        cell = values.get(name)
        if name not in form.columns or cell is None or (isinstance(cell, str) and name in ("prompt", "completion")):
            return
        cell = as_list(cell, name, where)
        values[name] = [self._turn(turn, name, where) for turn in cell] if isinstance(cell, list) else cell

    def _turn(self, turn: Any, column: str, where: str) -> Any:
        if not isinstance(turn, Mapping):
            return turn
        strange = turn.keys() - KNOWN_OF_TURNS.keys() - self.ignored
        if strange:
            if (written := otherwise_written(sorted(strange), KNOWN_OF_TURNS.keys() - turn.keys())) is not None:
                raise DataError(
                    f"{where}: the key {written[0]!r} of a turn in {column!r} is {written[1]!r} written otherwise, and "
                    f"would not be used. Rename it, or `ignore_columns: [{written[0]}]` of the data set."
                )
            self.unused.update(f"{column}.{name}" for name in strange if turn[name] is not None)
        if self.ignored:
            self.found.update(turn)
        return {key: value for key, value in turn.items() if key not in self.ignored} if self.ignored else turn


def otherwise_written(names: Iterable[str], known: Collection[str]) -> tuple[str, str] | None:
    """The first of the names that is not known as it stands, and the known name that it otherwise is; or None."""
    meant = {_letters(name): name for name in known}
    for name in names:
        twin = meant.get(_letters(name))
        if twin is not None and name not in known:
            return name, twin
    return None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


CONTENTS = ("messages", "conversations", "prompt", "completion", "instruction", "input", "output", "text")
"""The columns by which forms say what is read and trained."""


def refuse_rivals(values: Mapping[str, Any], used: Collection[str], form: str, where: str) -> None:
    """Raises DataError where a column of another form says something that the row's own columns do not.

    White space aside, each of its texts should stand in the row's, or hold all of them, as the `text` of Alpaca does,
    which is the row with a template around it.

    Args:
        values: the row's cells.
        used: the columns that the row's form uses.
        form: its name.
    """
    for name in CONTENTS:
        if name in used or name not in values:
            continue
        own = [text for column in CONTENTS if column in used for text in _texts(values.get(column))]
        everything = "".join(own)
        for text in _texts(values[name]):
            if text not in everything and not (own and all(part in text for part in own)):
                raise DataError(
                    f"{where}: the column {name!r} says something that the columns of the form {form} do not, and "
                    f"would be lost. If it belongs to the row, write it there; or leave it out on purpose: "
                    f"`ignore_columns: [{name}]` of the data set."
                )


def _texts(cell: Any) -> Iterator[str]:
    """The texts of a cell, without white space: a string, turns, or parts of turns."""
    if isinstance(cell, str):
        if text := "".join(cell.split()):
            yield text
    elif isinstance(cell, list):
        for item in cell:
            yield from _texts(item)
    elif isinstance(cell, Mapping):
        for key in ("content", "value", "text"):
            yield from _texts(cell.get(key))
