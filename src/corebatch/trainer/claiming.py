"""The settings by which a step claims; `CoresetConfig` has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from corebatch.batch.budget import make_budget
from corebatch.batch.target_settings import make_target
from corebatch.errors import ConfigError
from corebatch.objective import Objective, check_counting, make_objective, one_objective
from corebatch.sampling.by_length import make_by_length
from corebatch.sampling.shares import Sampling, make_sampling
from corebatch.scoring import LossUnit
from corebatch.trainer.auto import AUTO


@dataclass(frozen=True, kw_only=True)
class ClaimSettings:
    """What the large batch's update should be. Once made, `objective` and `loss` say the same.

    Attributes:
        objective, loss, weight_column, source_tokens, sampling, by_length, replay, target, budget: see
            `corebatch.trainer.CoresetConfig`.
    """

    objective: Any = AUTO
    loss: str = AUTO
    weight_column: str | None = None
    source_tokens: Mapping[str, float] | None = None
    sampling: Any = None
    replay: Mapping[str, float] | None = None
    target: Any = None
    by_length: Any = None
    budget: Any = "constant"

    def settle(self) -> None:
        """Raises ConfigError for a bad value, or two that contradict each other.

        Replay changes what is claimed on purpose: what is not said otherwise has the replayed sources' shares, of what
        is drawn and of the objective, and the other sources in proportion.
        """
        check_replay(self.replay)
        if self.replay is not None and (self.objective, self.loss) == (AUTO, AUTO):
            object.__setattr__(self, "objective", dict(self.replay))
        objective = one_objective(self.objective, self.loss)
        object.__setattr__(self, "loss", "example_mean" if objective.by_example else "token_mean")
        object.__setattr__(self, "objective", objective.plain())
        check_counting(objective, self.weight_column, self.source_tokens)
        sampling = None if self.sampling == "none" else make_sampling(self.sampling)
        if self.replay is not None:
            if sampling is not None and sampling.learnt is not None:
                raise ConfigError(
                    "coreset.replay draws sources by shares, and coreset.sampling.learnt rows by their losses. Found "
                    "both: leave one out."
                )
            sampling = sampling or Sampling(shares=dict(self.replay))
            if isinstance(sampling.shares, Mapping):
                sampling = replace(sampling, shares={**self.replay, **sampling.shares})
        object.__setattr__(self, "sampling", sampling)
        object.__setattr__(self, "by_length", make_by_length(self.by_length))
        if self.by_length is not None and self.sampling is not None:
            raise ConfigError("coreset.by_length and coreset.sampling both decide on the order of rows. Leave one out.")
        object.__setattr__(self, "budget", make_budget(self.budget))
        self._check_budget()
        target = make_target(self.target)
        object.__setattr__(self, "target", None if target is None else target.plain())

    def _check_budget(self) -> None:
        """Raises ConfigError for a batch that grows beside rows that are planned by steps of one size."""
        found = "by_length" if self.by_length is not None else ""
        if self.sampling is not None:
            found = "sampling.learnt" if self.sampling.learnt is not None else ""
            found = found or "sampling.shares by a schedule" * self.sampling.changes
        if self.budget is not None and found:
            raise ConfigError(
                f"coreset.budget changes how many rows a step has. Found coreset.{found}, which plans rows for steps "
                "of one size: leave one of the two out."
            )

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
        if corrects and self.sampling.learnt is not None:
            corrects = self.sampling.learnt.unbiased
        return not self.claimed.plainly_tokens or self.weight_column is not None or corrects


def check_replay(replay: object) -> None:
    """Raises ConfigError unless it is none, or maps sources to shares that leave some rows to others."""
    if replay is None:
        return
    if not isinstance(replay, Mapping) or not replay:
        raise ConfigError(f"coreset.replay should map sources to their share of the trained rows. Found {replay!r}.")
    for name, share in replay.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise ConfigError(f"coreset.replay: the share of {name!r} should be above 0 and below 1. Found {share!r}.")
    if sum(replay.values()) >= 1:
        raise ConfigError(f"coreset.replay should leave a share to other sources. Found {dict(replay)}.")
