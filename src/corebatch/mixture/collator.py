"""Rows of a mixture -> one padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import ConfigError, DataError
from corebatch.types import IGNORED


@dataclass(frozen=True)
class PaddingCollator:
    """Pads on the right to the longest row of the batch; a `data_collator` for the Trainer.

    Ids are padded with the tokenizer's pad token, or its end of sequence where it has none; labels with -100.
    All columns but input_ids, labels and attention_mask (ones where absent) are left out.

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        pad_to_multiple_of: rounds the length up to a multiple; None: the longest row as it is.

    Raises:
        ConfigError: neither a pad nor an end-of-sequence token, or `pad_to_multiple_of` below 1.
    """

    tokenizer: Any
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise ConfigError(f"`pad_to_multiple_of` should be at least 1. Found {self.pad_to_multiple_of}.")
        if self.tokenizer.pad_token_id is None and self.tokenizer.eos_token_id is None:
            raise ConfigError(
                "Padding needs a pad token or an end-of-sequence token. The tokenizer has neither; "
                "set `tokenizer.pad_token`."
            )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """input_ids, attention_mask, labels: LongTensor [N, T] each. Raises DataError: no rows, or a row without
        input_ids or labels or with different lengths of them."""
        if not rows:
            raise DataError("A batch should have at least one row. Found none.")
        for row in rows:
            self._check(row)
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        masks = [row.get("attention_mask", [1] * len(row["input_ids"])) for row in rows]
        return {
            "input_ids": self._stack([row["input_ids"] for row in rows], pad),
            "attention_mask": self._stack(masks, 0),
            "labels": self._stack([row["labels"] for row in rows], IGNORED),
        }

    def _stack(self, rows: Sequence[Any], fill: int) -> Tensor:
        multiple = self.pad_to_multiple_of or 1
        width = -(-max(len(row) for row in rows) // multiple) * multiple
        batch = torch.full((len(rows), width), fill, dtype=torch.long)
        for target, row in zip(batch, rows, strict=True):
            target[: len(row)] = torch.as_tensor(row, dtype=torch.long)
        return batch

    def _check(self, row: Mapping[str, Any]) -> None:
        missing = [name for name in ("input_ids", "labels") if name not in row]
        if missing:
            raise DataError(f"A row should have 'input_ids' and 'labels'. Found {', '.join(map(repr, row)) or 'none'}.")
        lengths = {name: len(row[name]) for name in ("input_ids", "labels", "attention_mask") if name in row}
        if len(set(lengths.values())) != 1:
            raise DataError(f"The columns of a row should have one length. Found {lengths}.")
