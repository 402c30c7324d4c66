"""The first blocks of the model on every example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from corebatch.batch.strategies.base import Strategy
from corebatch.batch.strategies.options import whole
from corebatch.model.early_exit import EarlyExit


@dataclass(frozen=True, kw_only=True)
class FirstBlocks(Strategy):
    """The scorer behind an early exit, with the model's own final norm and head.

    Attributes:
        blocks: the exit is after so many.
    """

    blocks: int = whole(2, 1)

    way: ClassVar[str] = "first_blocks"
    in_words: ClassVar[str] = "every row that is drawn, by the first {blocks} blocks"
    own_forward: ClassVar[bool] = True
    step_options: ClassVar[tuple[str, ...]] = ("blocks",)

    def changed_forward(self) -> Callable[[nn.Module, Mapping[str, Tensor]], AbstractContextManager[None]]:
        return EarlyExit(self.blocks).cut
