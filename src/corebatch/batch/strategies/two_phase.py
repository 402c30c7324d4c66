"""Two-phase sampling: a free proxy draws the rows that are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from corebatch.batch.method import CoresetStep
from corebatch.batch.strategies.base import (
    Need,
    OtherSettings,
    Remembering,
    is_number,
    needs_all_sources,
    needs_forward,
    needs_weights,
    one_of,
    option,
)
from corebatch.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TwoPhase(Remembering):
    """A free proxy draws a part of the pool, the scorer runs on that alone (Neyman 1938).

    Attributes:
        share: of the pool, above 0 and at most 1; None: halfway between the small and the large batch.
        proxy: "tokens": the square root of trained tokens; "norm": the remembered feature's length; "loss": the
            remembered loss. What is not known is guessed from the trained tokens.
    """

    share: float | None = option(
        None, "above 0 and at most 1", lambda value: value is None or (is_number(value) and 0 < value <= 1)
    )
    proxy: Literal["tokens", "norm", "loss"] = one_of("tokens", "tokens", "norm", "loss")

    way: ClassVar[str] = "two_phase"
    step_options: ClassVar[tuple[str, ...]] = ("share", "proxy")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proxy != "norm" and not self.learn:
            raise ConfigError(
                f"coreset.scoring.learn does nothing with proxy {self.proxy!r}: only norms are learnt from training. "
                "Leave it out, or use proxy 'norm'."
            )

    def needs(self, others: OtherSettings, step: CoresetStep) -> Sequence[Need]:
        least = 1 / others.pool_factor
        enough = self.share is None or self.share * others.pool_factor > 1 or others.pool_factor == 1
        return (
            needs_forward(step),
            needs_weights(step),
            needs_all_sources(others),
            (
                enough,
                f"a share above 1 / pool_factor = {least:.3g}: with fewer rows in the first phase there would be "
                f"nothing to choose in the second. Found {self.share}",
            ),
        )

    @property
    def remembers(self) -> bool:
        return self.proxy != "tokens"

    @property
    def learns(self) -> bool:
        return self.proxy == "norm" and self.learn

    def price(self, supposed: Mapping[str, Any], scored: float) -> float:
        return scored
