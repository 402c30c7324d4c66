"""The user's collator, with ids and sources led around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import DataError
from corebatch.sampling.tagged import TaggedRow
from corebatch.types import ID, SOURCE

CHECKED = 8
"""Batches of a process that are looked through for rows that changed places."""


class SourceCollator:
    """Takes ids and sources out of the examples, calls the user's collator, and adds them as LongTensors [B].

    The collator gets what the data set has, the source column too. One that cannot do with a source's name, since text
    cannot become a tensor, gets the examples without it from then on.

    Args:
        collator: the user's.
        column: that names the source.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], column: str) -> None:
        self.collator, self.column = collator, column
        self._without, self._checked = False, 0

    def __getattr__(self, name: str) -> Any:
        """The user's collator shows through: its padding settings, for instance."""
        if name.startswith("__") or name == "collator":  # asked for while a copy is being made
            raise AttributeError(name)
        return getattr(self.collator, name)

    def __call__(self, examples: list[Any]) -> Any:
        tags, rows = _apart(examples)
        if not tags:
            return self._made(rows)
        try:
            batch = self._made(rows)
        except Exception as error:
            raise DataError(self._unfit([number for number, _ in tags], rows, error)) from error
        self._check(rows, batch)
        batch[ID] = torch.tensor([number for number, _ in tags])
        batch[SOURCE] = torch.tensor([source for _, source in tags])
        return batch

    def _made(self, rows: list[Any]) -> Any:
        """What the user's collator makes, without a source's name: no model takes it."""
        named = any(isinstance(row, Mapping) and isinstance(row.get(self.column), str) for row in rows)
        if not named:
            return self.collator(rows)
        if not self._without:
            try:
                batch = self.collator(rows)
            except Exception as error:
                batch = self._retried(rows, error)
            if isinstance(batch, MutableMapping) and not isinstance(batch.get(self.column, 0), Tensor | int):
                del batch[self.column]
            return batch
        return self.collator(self._nameless(rows))

    def _retried(self, rows: list[Any], error: Exception) -> Any:
        try:
            batch = self.collator(self._nameless(rows))
        except Exception:
            raise error from None  # what the collator says of the examples as they are
        self._without = True
        return batch

    def _nameless(self, rows: list[Any]) -> list[Any]:
        return [{key: value for key, value in row.items() if key != self.column} for row in rows]

    def _check(self, rows: Sequence[Any], batch: Any) -> None:
        """Raises DataError unless the batch has the examples as rows, in their order: ids and sources go by it."""
        kind = type(self.collator).__name__
        if not isinstance(batch, MutableMapping):
            raise DataError(
                f"The collator ({kind}) should make a dictionary, as a Trainer's model takes it. Found "
                f"{type(batch).__name__}."
            )
        ids = batch.get("input_ids")
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            return
        if len(ids) != len(rows):
            raise DataError(
                f"The collator ({kind}) should make a row of each example: selection works on unpacked rows, "
                f"so packing and flattening do not go with it. Found "
                f"{len(ids)} rows of {len(rows)} examples."
            )
        if self._checked < CHECKED and all(isinstance(row, Mapping) and "input_ids" in row for row in rows):
            self._checked += 1
            _check_order(kind, [_listed(row["input_ids"]) for row in rows], ids.tolist())

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
            self._made(rows)
        except Exception:
            return False
        return True


def _apart(examples: Sequence[Any]) -> tuple[list[tuple[int, int]], list[Any]]:
    """Ids and sources of the examples, none if they have none, and the examples as the user has them."""
    first = examples[0] if examples else None
    if isinstance(first, TaggedRow):
        return [(row.id, row.source) for row in examples], [row.row for row in examples]
    if not isinstance(first, Mapping) or ID not in first:
        return [], list(examples)
    tags = [(int(row[ID]), int(row[SOURCE])) for row in examples]
    return tags, [{k: v for k, v in row.items() if k not in (ID, SOURCE)} for row in examples]


def _listed(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _check_order(kind: str, before: list[list[Any]], after: list[list[Any]]) -> None:
    """A row that is elsewhere and not where it was has been moved. One that is nowhere has been changed, which is the
    collator's own affair."""

    def holds(made: list[Any], row: list[Any]) -> bool:
        return made[: len(row)] == row or made[len(made) - len(row) :] == row

    for place, row in enumerate(before):
        if row and not holds(after[place], row):
            elsewhere = next((other for other, made in enumerate(after) if holds(made, row)), None)
            if elsewhere is not None:
                raise DataError(
                    f"The collator ({kind}) should leave examples in their order: ids and sources go by it. Found "
                    f"example {place} of a batch in row {elsewhere}."
                )
