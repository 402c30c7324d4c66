"""Every example at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corebatch.batch.strategies.base import Reusing


@dataclass(frozen=True, kw_only=True)
class Full(Reusing):
    """The scorer on every example at every step."""

    way: ClassVar[str] = "full"
    prices_reuse: ClassVar[bool] = True
