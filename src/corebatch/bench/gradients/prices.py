"""What a step pays for scoring and training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from corebatch.bench.gradients.costs import Costs
from corebatch.bench.gradients.methods import Method
from corebatch.bench.gradients.series import Choices
from corebatch.bench.timing import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a step pays.

    Attributes:
        s, s_all_logits: forwards of scoring an example.
        chosen, tokens, positions: examples that are trained, and the same in examples of mean tokens and of mean
            padded positions.
        large: N.
        reuse: whether the scoring forward may serve as the first of those that are trained.
    """

    s: Spread
    s_all_logits: Spread
    chosen: int
    tokens: float
    positions: float
    large: int
    reuse: bool

    def cost(self, trained: float, c: float) -> float:
        """Of a step, in trainings of one example."""
        return trained + self.large * self.s.value / c

    def at(self, c: float) -> dict[str, float | None]:
        """Costs of a step at one c."""
        return {
            "cost_examples": self.cost(self.chosen, c),
            "cost_tokens": self.cost(self.tokens, c),
            "cost_positions": self.cost(self.positions, c),
            "cost_tokens_reuse": self.cost(self.tokens * (c - 1) / c, c) if self.reuse else None,
        }

    def worth(self, effective: float, c: float) -> dict[str, float]:
        """What so many effective examples are worth at one c."""
        return {
            "per_cost_tokens": effective / self.cost(self.tokens, c),
            "per_cost_positions": effective / self.cost(self.positions, c),
        }

    def fields(self, costs: Costs, ratios: Sequence[float]) -> dict[str, Any]:
        """The fields of a measurement that say what a step costs."""
        again = None if costs.training_checkpointing is None else costs.training_checkpointing.value
        checkpointed: dict[str, float | None] = {} if again is None else self.at(again)
        return {
            "s": self.s.value,
            "s_low": self.s.low,
            "s_high": self.s.high,
            "s_all_logits": self.s_all_logits.value,
            "c": costs.training.value,
            "c_low": costs.training.low,
            "c_high": costs.training.high,
            "c_checkpointing": again,
            "tokens_cost": self.tokens / self.chosen,
            "positions_cost": self.positions / self.chosen,
            **self.at(costs.training.value),
            "cost_tokens_checkpointing": checkpointed.get("cost_tokens"),
            "cost_tokens_reuse": checkpointed.get("cost_tokens_reuse"),
            "cost_ratios": {f"{ratio:g}": self.at(ratio) for ratio in ratios},
        }


def prices(method: Method, chosen: Choices, costs: Costs, *, large: int, budget: int) -> Prices:
    """What a step of the method pays."""
    price = float(method.way.options.get("cost", 0))
    s, s_all_logits = Spread(price, price, price), Spread(price, price, price).times(1 / costs.all_logits.value)
    if chosen.runs_forwards and method.way.price() > 0:
        part = method.way.price(chosen.scored_share)
        s, s_all_logits = (each[method.forward].times(part) for each in (costs.scoring, costs.scoring_all_logits))
    return Prices(
        s=s,
        s_all_logits=s_all_logits,
        chosen=budget,
        tokens=budget * chosen.tokens_cost,
        positions=budget * chosen.positions_cost,
        large=large,
        reuse=method.way.strategy.prices_reuse and chosen.runs_forwards,
    )
