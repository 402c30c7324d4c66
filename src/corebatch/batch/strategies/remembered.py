"""Features of the last time that an example was scored or trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from corebatch.batch.method import CoresetStep
from corebatch.batch.strategies.base import Need, OtherSettings, Remembering
from corebatch.batch.strategies.from_memory import FromMemory
from corebatch.batch.strategies.options import one_of, whole
from corebatch.errors import ConfigError
from corebatch.scoring.value_gradients import ValueGradientScorer


@dataclass(frozen=True, kw_only=True)
class Remembered(FromMemory, Remembering):
    """Features from the last time that an example was scored or trained; others are guessed, or scored.

    Attributes:
        max_age: what is older, in optimizer steps, is not known any more; None: for ever.
        unknown: "guess": the square root of trained tokens at the level of the latest examples, without a direction;
            "score": a forward for those.
    """

    max_age: int | None = whole(None, 1)
    unknown: Literal["guess", "score"] = one_of("guess", "guess", "score")

    way: ClassVar[str] = "remembered"
    in_words: ClassVar[str] = "rows that are not remembered"
    first_pass_differs: ClassVar[bool] = True
    supposed: ClassVar[tuple[str, ...]] = ("age", "known", "visits", "cost")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.learn and self.unknown == "guess":
            raise ConfigError(
                "coreset.scoring 'remembered' needs learn true or unknown 'score': with neither there is never "
                "anything to remember. Found learn False and unknown 'guess'."
            )

    def needs(self, others: OtherSettings, step: CoresetStep) -> Sequence[Need]:
        teaches = (
            isinstance(step.scorer, ValueGradientScorer),
            "unknown 'score' or a scorer whose features training gives (last_layer, gradient_norm), or there "
            f"would never be anything to remember. Found scorer {step.scorer.name!r}",
        )
        return (*super().needs(others, step), *([teaches] if self.only_learns else []))

    def scored(self, known: Tensor, step: int) -> Tensor:
        return ~known if self.unknown == "score" else torch.zeros_like(known)

    @property
    def scores_exactly(self) -> bool:
        return self.unknown == "score"

    @property
    def only_learns(self) -> bool:
        return self.unknown == "guess"

    def price(self, supposed: Mapping[str, Any], scored: float) -> float:
        """Nothing where features come from the backward of training."""
        return 1 / supposed["visits"] if "visits" in supposed else 0.0
