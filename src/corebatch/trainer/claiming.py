"""The settings by which a step claims; `CoresetConfig` has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from corebatch.objective import Objective, check_counting, make_objective, one_objective
from corebatch.sampling.shares import make_sampling
from corebatch.scoring import LossUnit
from corebatch.trainer.auto import AUTO


@dataclass(frozen=True, kw_only=True)
class ClaimSettings:
    """What the large batch's update should be. Once made, `objective` and `loss` say the same.

    Attributes:
        objective, loss, weight_column, source_tokens, sampling: see `corebatch.trainer.CoresetConfig`.
    """

    objective: Any = AUTO
    loss: str = AUTO
    weight_column: str | None = None
    source_tokens: Mapping[str, float] | None = None
    sampling: Any = None

    def settle(self) -> None:
        """Raises ConfigError for a bad value, or two that contradict each other."""
        objective = one_objective(self.objective, self.loss)
        object.__setattr__(self, "loss", "example_mean" if objective.by_example else "token_mean")
        object.__setattr__(self, "objective", objective.plain())
        check_counting(objective, self.weight_column, self.source_tokens)
        object.__setattr__(self, "sampling", None if self.sampling == "none" else make_sampling(self.sampling))

    @cached_property
    def claimed(self) -> Objective:
        """`objective`, checked."""
        return make_objective(self.objective)

    @property
    def unit(self) -> LossUnit:
        """The unit of losses and gradients."""
        return "example_mean" if self.claimed.by_example else "token_mean"

    @property
    def weighs(self) -> bool:
        """Whether rows count otherwise than in the Trainer's own mean over tokens of what comes."""
        corrects = self.sampling is not None and self.claimed.corrects
        return not self.claimed.plainly_tokens or self.weight_column is not None or corrects
