"""Rows in and out of batches: padded batches are taken apart, rows are put together, padded or packed one behind the
other.

Shape suffixes: B rows of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import UNTOUCHED, DataError, InputError
from corebatch.types import ID, IGNORED, SOURCE

PACKED_KEYS = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx", "max_length_q")


@dataclass(frozen=True, slots=True)
class Padding:
    """What fills a row up to a batch's width, and on which side.

    Attributes:
        multiple_of: widths are rounded up to a multiple of this, but not above `longest`, which is what a model can
            take.
    """

    token: int
    left: bool = False
    multiple_of: int = 1
    longest: int | None = None

    def width(self, length: int) -> int:
        """Of a batch whose longest row has so many tokens."""
        width = -(-length // self.multiple_of) * self.multiple_of
        return width if self.longest is None else max(length, min(width, self.longest))

    def value(self, key: str) -> int:
        return {"input_ids": self.token, "labels": IGNORED}.get(key, 0)


def check_pool(batch: Mapping[str, Any]) -> None:
    """Raises DataError unless the batch can be taken apart by rows."""
    packed = [key for key in PACKED_KEYS if key in batch]
    if packed:
        raise DataError(
            f"Selection works on unpacked rows: switch packing and padding_free off. Found {', '.join(packed)}."
        )
    if "labels" not in batch or "input_ids" not in batch:
        raise DataError(f"A batch should have `input_ids` and `labels`. Found {', '.join(sorted(batch))}.")
    if "loss_weights" in batch:
        raise DataError(
            "`loss_weights` in a batch are the ones that corebatch chooses. Found that name in the collator's: "
            f"weights of one's own are not used. Give it another name, or train with the plain Trainer ({UNTOUCHED})."
        )
    if batch["labels"].shape != batch["input_ids"].shape:
        raise DataError(
            f"A batch should have a label for each token of `input_ids`, {tuple(batch['input_ids'].shape)}. Found "
            f"labels of shape {tuple(batch['labels'].shape)}: those of a classifier or an encoder-decoder?"
        )
    rows = len(batch["input_ids"])
    for key, value in batch.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != rows:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise DataError(f"Every entry of a batch should be a Tensor with {rows} rows. Found {key!r}: {found}.")


def row_spans(batch: Mapping[str, Tensor]) -> Tensor:
    """LongTensor [B, 2] on the CPU: where each row's tokens start and end; everything without an attention mask."""
    rows, width = batch["input_ids"].shape
    mask = batch.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return torch.tensor([[0, width]] * rows)
    present = (mask != 0) | (batch["labels"] != IGNORED)
    start = present.int().argmax(dim=1)
    end = width - present.flip(1).int().argmax(dim=1)
    nothing = ~present.any(dim=1)
    return torch.stack([start.masked_fill(nothing, 0), end.masked_fill(nothing, 1)], dim=1).cpu()


def take_rows(
    batches: Sequence[Mapping[str, Tensor]], wanted: Sequence[int], by_token: Mapping[str, bool] | None = None
) -> list[dict[str, Tensor]]:
    """The rows `wanted` (numbered through all batches) without their padding, in that order.

    Args:
        by_token: which keys have a value for each token; by default those that are as wide as their batch's tokens.
    """
    spans = [row_spans(batch) for batch in batches]
    owners = [(b, r) for b, batch in enumerate(batches) for r in range(len(batch["input_ids"]))]
    rows = []
    for number in wanted:
        b, r = owners[number]
        start, end = spans[b][r].tolist()
        width = batches[b]["input_ids"].shape[1]
        rows.append(
            {
                key: value[r, start:end] if _by_token(key, value, width, by_token) else value[r]
                for key, value in batches[b].items()
            }
        )
    return rows


def _by_token(key: str, value: Tensor, width: int, known: Mapping[str, bool] | None) -> bool:
    return known[key] if known is not None else value.ndim > 1 and value.shape[1] == width


def put_together(rows: Sequence[Mapping[str, Tensor]], padding: Padding) -> dict[str, Tensor]:
    """A padded batch of rows that `take_rows` gave."""
    length = padding.width(max(len(row["input_ids"]) for row in rows))
    batch = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        if all(v.ndim > 0 and len(v) == len(row["input_ids"]) for v, row in zip(values, rows, strict=True)):
            full = values[0].new_full((len(rows), length, *values[0].shape[1:]), padding.value(key))
            for i, value in enumerate(values):
                part = slice(length - len(value), length) if padding.left else slice(0, len(value))
                full[i, part] = value
            batch[key] = full
        else:
            batch[key] = torch.stack(values)
    return batch


def check_packable(rows: Sequence[Mapping[str, Tensor]]) -> None:
    """Raises DataError unless rows that `take_rows` gave can stand one behind the other without a mask.

    All rows together tell what belongs to tokens: one row alone may be as long as a key by row is wide.
    """
    for key in rows[0].keys() - {ID, SOURCE}:
        if any(row[key].ndim == 0 or len(row[key]) != len(row["input_ids"]) for row in rows):
            shapes = [tuple(row[key].shape) for row in rows[:3]]
            raise DataError(
                f"Packed rows can only have keys with a value for each token. Found {key!r} of shapes {shapes} "
                f"for {[len(row['input_ids']) for row in rows[:3]]} tokens. Drop it, or switch packing off."
            )
    for row in rows:
        if "attention_mask" in row and bool((row["attention_mask"] == 0).any()):
            found = "an attention mask with zeros inside the row"
        elif "position_ids" in row and bool((row["position_ids"].diff(dim=0) != 1).any()):
            found = "position_ids that do not count up by one"
        else:
            continue
        raise DataError(
            f"Packed rows have no mask and positions of their own. Found {found} in example {int(row[ID])}. "
            "Switch packing off."
        )


def pack_together(rows: Sequence[Mapping[str, Tensor]], *, flash: bool = False) -> dict[str, Any]:
    """One batch row [1, T] of rows that pass `check_packable`, one behind the other, T tokens in all.

    Where a row ends shows in `position_ids`, which restart at 0; transformers keeps attention within rows if there is
    no mask and no cache, so `use_cache` is off. A row's first label is ignored: its prediction would come from the
    row before.

    Args:
        rows: as `take_rows` gave them.
        flash: also add `cu_seq_lens_q`, `cu_seq_lens_k` (int32 [rows + 1]), `max_length_q` and `max_length_k` (int),
            which spare flash attention reading the positions in every layer; named as by transformers'
            DataCollatorWithFlattening.
    """
    device, lengths = rows[0]["input_ids"].device, [len(row["input_ids"]) for row in rows]
    batch: dict[str, Any] = {
        key: torch.cat([row[key] for row in rows]).unsqueeze(0)
        for key in rows[0]
        if key not in (ID, SOURCE, "attention_mask")
    }
    batch["position_ids"] = torch.cat([torch.arange(length, device=device) for length in lengths]).unsqueeze(0)
    batch["labels"] = batch["labels"].masked_fill(batch["position_ids"] == 0, IGNORED)
    batch["use_cache"] = False
    if flash:
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        batch |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
        batch |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    return batch


def trained_tokens(labels: Tensor) -> Tensor:
    """LongTensor [B]: labels that are trained. The first position predicts nothing: labels are shifted by one."""
    return (labels[:, 1:] != IGNORED).sum(dim=1)


def attended(batch: Mapping[str, Tensor]) -> Tensor:
    """BoolTensor [B, T]: tokens that are no padding; without an attention mask all.

    Raises:
        InputError: the attention mask has another shape than the inputs.
    """
    inputs = batch["input_ids"]
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.ones_like(inputs, dtype=torch.bool)
    if mask.shape != inputs.shape:
        raise InputError(
            f"`attention_mask` should have the shape of `input_ids`, {tuple(inputs.shape)}. Found {tuple(mask.shape)}."
        )
    return mask != 0
