"""A few tokens of every example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from corebatch.batch.strategies.base import Strategy
from corebatch.batch.strategies.options import whole
from corebatch.scoring import LossUnit
from corebatch.types import IGNORED


@dataclass(frozen=True, kw_only=True)
class Window(Strategy):
    """The scorer on a window of each example. For a mean over tokens, features are scaled by the square root of the
    trained tokens in the example over those in the window.

    Attributes:
        tokens: of the window, which begins a quarter of it before the first trained token.
    """

    tokens: int = whole(64, 2)

    way: ClassVar[str] = "window"
    in_words: ClassVar[str] = "{tokens} tokens of every row that is drawn"
    own_forward: ClassVar[bool] = True
    step_options: ClassVar[tuple[str, ...]] = ("tokens",)

    def shorten(self, row: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return window(row, self.tokens)

    def lengths(self, lengths: Tensor) -> Tensor:
        return lengths.clamp(max=self.tokens)

    def scale(self, rows: Sequence[Mapping[str, Tensor]], tokens: Tensor, loss: LossUnit) -> Tensor | None:
        if loss != "token_mean":
            return None
        seen = torch.tensor([int((row["labels"][1:] != IGNORED).sum()) for row in rows])
        return (tokens / seen.clamp(min=1)).sqrt()


def window(row: Mapping[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """A stretch of at most `tokens` tokens of a row without padding: a quarter of it, and one token at least, before
    the first trained token, or the row's end."""
    length = len(row["input_ids"])
    if length <= tokens:
        return dict(row)
    trained = (row["labels"] != IGNORED).nonzero()
    first = int(trained[0]) if len(trained) else 0
    start = max(0, min(first - max(1, tokens // 4), length - tokens))
    return {
        key: value[start : start + tokens] if value.ndim > 0 and len(value) == length else value
        for key, value in row.items()
    }
