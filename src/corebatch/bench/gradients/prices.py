"""What a step pays for scoring and training, and what its estimate is worth by that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from corebatch.bench.gradients.costs import Costs
from corebatch.bench.gradients.draws import Draws
from corebatch.bench.gradients.methods import Method
from corebatch.bench.gradients.population import PopulationScoring
from corebatch.bench.timing import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a step pays.

    Attributes:
        s, s_all_logits: forwards of scoring an example.
        chosen, tokens: examples that are trained, and the same in examples of mean length.
        large: N.
        reuse: whether the scoring forward may serve as the first of those that are trained.
    """

    s: Spread
    s_all_logits: Spread
    chosen: int
    tokens: float
    large: int
    reuse: bool

    def cost(self, trained: float, c: float) -> float:
        """Of a step, in trainings of one example."""
        return trained + self.large * self.s.value / c

    def at(self, effective: float, c: float) -> dict[str, float | None]:
        """Costs of a step, and `effective` examples by them, at one c."""
        examples, tokens = self.cost(self.chosen, c), self.cost(self.tokens, c)
        reuse = self.cost(self.tokens * (c - 1) / c, c) if self.reuse else None
        return {
            "cost_examples": examples,
            "cost_tokens": tokens,
            "cost_tokens_reuse": reuse,
            "examples": effective / examples,
            "tokens": effective / tokens,
            "tokens_reuse": None if reuse is None else effective / reuse,
        }

    def worth(self, effective: float, costs: Costs, ratios: Sequence[float]) -> dict[str, Any]:
        """The fields of a measurement that say what `effective` examples cost."""
        plain = self.at(effective, costs.training.value)
        c_again = None if costs.training_checkpointing is None else costs.training_checkpointing.value
        again: Mapping[str, float | None] = {} if c_again is None else self.at(effective, c_again)
        return {
            "s": self.s.value,
            "s_low": self.s.low,
            "s_high": self.s.high,
            "s_all_logits": self.s_all_logits.value,
            "c": costs.training.value,
            "c_low": costs.training.low,
            "c_high": costs.training.high,
            "c_checkpointing": c_again,
            "tokens_cost": self.tokens / self.chosen,
            "cost_examples": plain["cost_examples"],
            "cost_tokens": plain["cost_tokens"],
            "cost_tokens_checkpointing": again.get("cost_tokens"),
            "cost_tokens_reuse": again.get("cost_tokens_reuse"),
            "per_cost_examples": plain["examples"],
            "per_cost_tokens": plain["tokens"],
            "per_cost_examples_checkpointing": again.get("examples"),
            "per_cost_tokens_checkpointing": again.get("tokens"),
            "per_cost_tokens_reuse": again.get("tokens_reuse"),
            "per_cost_ratios": {f"{ratio:g}": self.at(effective, ratio) for ratio in ratios},
        }


def prices(method: Method, arm: PopulationScoring, drawn: Draws, costs: Costs, *, large: int, budget: int) -> Prices:
    """What a step of the method pays."""
    price = float(method.way.options.get("cost", 0))
    s, s_all_logits = Spread(price, price, price), Spread(price, price, price).times(1 / costs.all_logits.value)
    if arm.runs_forwards and method.way.price() > 0:
        part = method.way.price(drawn.scored_share)
        s, s_all_logits = (each[method.forward].times(part) for each in (costs.scoring, costs.scoring_all_logits))
    return Prices(
        s=s,
        s_all_logits=s_all_logits,
        chosen=budget,
        tokens=budget * drawn.tokens_cost,
        large=large,
        reuse=method.way.strategy.prices_reuse and arm.runs_forwards,
    )
