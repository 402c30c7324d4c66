"""No scoring at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from corebatch.batch.strategies.from_memory import FromMemory


@dataclass(frozen=True, kw_only=True)
class Unscored(FromMemory):
    """No scoring and no memory: inclusion in proportion to the square root of trained tokens. Where the loss is a mean
    over examples, equal sizes stand for that here and everywhere."""

    way: ClassVar[str] = "none"
    in_words: ClassVar[str] = "nothing: rows are drawn {drawn}"

    def scored(self, known: Tensor, step: int) -> Tensor:
        return torch.zeros_like(known)

    def price(self, supposed: Mapping[str, Any], scored: float) -> float:
        return 0.0
