"""Rows in and out of padded batches: the pool's batches are taken apart and the small batch's are put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import DataError
from corebatch.scoring.base import IGNORED
from corebatch.trainer.tagging import ID, SOURCE

PACKED_KEYS = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx", "max_length_q")


@dataclass(frozen=True, slots=True)
class Padding:
    """What fills a row up to a batch's width, and on which side."""

    token: int
    left: bool = False
    multiple_of: int = 1

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


def take_rows(batches: Sequence[Mapping[str, Tensor]], wanted: Sequence[int]) -> list[dict[str, Tensor]]:
    """The rows `wanted` (numbered through all batches) without their padding, in that order."""
    spans = [row_spans(batch) for batch in batches]
    owners = [(b, r) for b, batch in enumerate(batches) for r in range(len(batch["input_ids"]))]
    rows = []
    for number in wanted:
        b, r = owners[number]
        start, end = spans[b][r].tolist()
        width = batches[b]["input_ids"].shape[1]
        rows.append(
            {
                key: value[r, start:end] if value.ndim > 1 and value.shape[1] == width else value[r]
                for key, value in batches[b].items()
            }
        )
    return rows


def put_together(rows: Sequence[Mapping[str, Tensor]], padding: Padding) -> dict[str, Tensor]:
    """A padded batch of rows that `take_rows` gave."""
    length = max(len(row["input_ids"]) for row in rows)
    length = -(-length // padding.multiple_of) * padding.multiple_of
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


def micro_batches(
    rows: Sequence[Mapping[str, Tensor]],
    weights: Tensor | None,
    count: int,
    padding: Padding,
    filler: Mapping[str, Tensor],
) -> list[dict[str, Tensor]]:
    """Exactly `count` micro-batches of near-equal numbers of rows, rows of like length together.

    Args:
        rows: this rank's share of the small batch.
        weights: `loss_weights` [len(rows)], or None where the plain loss is used (then rows >= count).
        count: how many micro-batches the parent asked for.
        padding: how to pad.
        filler: a row that stands, with weight 0, where there are fewer rows than micro-batches.
    """
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]["input_ids"]), int(rows[i][ID])))
    base, more = divmod(len(rows), count)
    made, start = [], 0
    for number in range(count):
        size = base + (number < more)
        part = order[start : start + size]
        start += size
        batch = put_together([rows[i] for i in part] or [filler], padding)
        batch.pop(ID)
        batch.pop(SOURCE)
        if weights is not None:
            batch["loss_weights"] = weights[part] if part else weights.new_zeros(1)
        made.append(batch)
    return made
