"""A few tokens of every example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from corebatch.batch.method import CoresetStep
from corebatch.batch.strategies.base import Need, OtherSettings, Strategy, needs_forward, whole


@dataclass(frozen=True, kw_only=True)
class Window(Strategy):
    """The scorer on a window of each example. For a mean over tokens, features are scaled by the square root of the
    trained tokens in the example over those in the window.

    Attributes:
        tokens: of the window, which begins a quarter of it before the first trained token.
    """

    tokens: int = whole(64, 2)

    way: ClassVar[str] = "window"
    own_forward: ClassVar[bool] = True
    step_options: ClassVar[tuple[str, ...]] = ("tokens",)

    def needs(self, others: OtherSettings, step: CoresetStep) -> Sequence[Need]:
        return (needs_forward(step),)
