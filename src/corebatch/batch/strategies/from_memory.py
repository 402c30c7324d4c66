"""What strategies share that do not compute some features at a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from corebatch.batch.method import CoresetStep
from corebatch.batch.strategies.base import (
    Need,
    OtherSettings,
    Strategy,
    needs_all_sources,
    needs_forward,
    needs_weights,
)


@dataclass(frozen=True, kw_only=True)
class FromMemory(Strategy):
    """A strategy by which some features of a pool are remembered, or guessed."""

    def needs(self, others: OtherSettings, step: CoresetStep) -> Sequence[Need]:
        return (
            needs_forward(step),
            needs_weights(step),
            (others.normalise is None, f"normalise none. Found {others.normalise!r}"),
            (others.sparsify is None, f"sparsify none. Found {others.sparsify!r}"),
            needs_all_sources(others),
        )
