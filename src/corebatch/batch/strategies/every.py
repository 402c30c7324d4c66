"""Every example at some of the steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from corebatch.batch.strategies.base import Remembering
from corebatch.batch.strategies.from_memory import FromMemory
from corebatch.batch.strategies.options import whole


@dataclass(frozen=True, kw_only=True)
class Every(FromMemory, Remembering):
    """The scorer at every so many optimizer steps; between them features are remembered, or guessed.

    Attributes:
        steps: from one scoring to the next.
        max_age: what is older, in optimizer steps, is not known any more; None: for ever.
    """

    steps: int = whole(4, 1)
    max_age: int | None = whole(None, 1)

    way: ClassVar[str] = "every"
    in_words: ClassVar[str] = "every row that is drawn, at every {steps}-th step"
    step_options: ClassVar[tuple[str, ...]] = ("steps",)

    def scored(self, known: Tensor, step: int) -> Tensor:
        return torch.full_like(known, step % self.steps == 0)

    @property
    def period(self) -> int:
        return self.steps

    def price(self, supposed: Mapping[str, Any], scored: float) -> float:
        return 1 / self.steps
