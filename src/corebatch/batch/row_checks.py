"""Rows that the model cannot take, found before any forward, which would name neither row nor cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from corebatch.errors import DataError
from corebatch.types import ID, IGNORED

SHOWN = 8


def check_rows(
    batches: Sequence[Mapping[str, Tensor]],
    vocabulary: int,
    longest: int | None,
    *,
    targets: int | None = None,
    of: str = "train",
) -> None:
    """Looks at the extremes of all batches; at single rows only if something is wrong.

    Args:
        batches: this rank's of a pool, with `input_ids`, `labels` and example ids.
        vocabulary: token ids are from 0 to this, exclusive.
        longest: tokens of a row at most, or None.
        targets: labels are -100 or from 0 to this, exclusive; `vocabulary` by default.
        of: whose rows they are, for messages: the "train" set's.

    Raises:
        DataError: a row is too long, or a token id or a label is outside; says which examples, what was expected and
            what was found.
    """
    targets = vocabulary if targets is None else targets
    if not batches:
        return
    if longest is not None and any(batch["input_ids"].shape[1] > longest for batch in batches):
        _check_lengths(batches, longest, of)
    extremes = torch.stack([torch.stack([*_extremes(batch)]) for batch in batches])
    least, most = extremes.amin(dim=0).tolist(), extremes.amax(dim=0).tolist()  # the one look at a device's numbers
    if least[0] < 0 or most[1] >= vocabulary:
        _refuse(batches, "Token ids", "input_ids", vocabulary, of)
    if least[2] < 0 or most[3] >= targets:
        _refuse(batches, f"Labels should be {IGNORED} or trained; trained ones", "labels", targets, of)


def _extremes(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Least and largest token id, then label; what is ignored counts as 0."""
    low, high = torch.aminmax(batch["input_ids"])
    least, most = torch.aminmax(_trained(batch["labels"]))
    return low, high, least, most


def _trained(labels: Tensor) -> Tensor:
    return labels.masked_fill(labels == IGNORED, 0)


def _refuse(batches: Sequence[Mapping[str, Tensor]], what: str, key: str, limit: int, of: str) -> None:
    examples, found = [], set()
    for batch in batches:
        values = batch[key] if key == "input_ids" else _trained(batch[key])
        outside = (values < 0) | (values >= limit)
        examples += _ids(batch, outside.any(dim=1))
        found |= set(values[outside].tolist())
    raise DataError(
        f"{what} should be from 0 to {limit - 1}, as the model's vocabulary has them. Found {_few(sorted(found))} in "
        f"examples {_few(examples)} of the {of} set: is the tokenizer the model's, or are these rows damaged?"
    )


def _check_lengths(batches: Sequence[Mapping[str, Tensor]], longest: int, of: str) -> None:
    examples, lengths = [], []
    for batch in batches:
        mask = batch.get("attention_mask")
        whole = torch.ones_like(batch["input_ids"])
        tokens = (whole if mask is None or mask.ndim != 2 else (mask != 0).long()).sum(dim=1)
        examples += _ids(batch, tokens > longest)
        lengths += tokens[tokens > longest].tolist()
    if examples:
        raise DataError(
            f"Rows should have at most {longest} tokens, as many positions as the model has. Found {_few(lengths)} "
            f"tokens in examples {_few(examples)} of the {of} set. Cut or drop them (max_length)."
        )
    width = max(batch["input_ids"].shape[1] for batch in batches)
    raise DataError(
        f"Batches should be at most {longest} positions wide, as many as the model has. Found {width}, padding "
        "included: pad to the longest row of a batch, or to a multiple that divides the limit."
    )


def _ids(batch: Mapping[str, Tensor], rows: Tensor) -> list[int]:
    """Example ids of some rows; their numbers in the batch where there are none."""
    ids = batch[ID] if ID in batch else torch.arange(len(rows), device=rows.device)
    return ids[rows.to(ids.device)].tolist()


def _few(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:SHOWN])) + (", ..." if len(values) > SHOWN else "")
