"""What a method chooses out of many large batches.

Shape suffixes: P population, K draws.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corebatch.bench.gradients.population import History, PopulationScoring
from corebatch.scoring import LossUnit, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """What one method chose in all draws.

    Attributes:
        coefficients_KP: of the estimates, float64 [K, P].
        milliseconds, sizes, largest: of each draw: time to choose, effective size of the weights, largest weight.
        tokens_cost: mean of the chosen's tokens by those of as many mean rows of the large batch.
        kept: mean of the rows that were taken with their whole source.
        scored_share: mean of the scored rows' tokens by those of the large batch.
    """

    coefficients_KP: Tensor
    milliseconds: list[float]
    sizes: list[float]
    largest: list[float]
    tokens_cost: float
    scored_share: float
    kept: float

    def fields(self, budget: int) -> dict[str, float]:
        """Those of a `Measurement`."""
        draws = len(self.sizes)
        return {
            "select_ms": float(torch.tensor(self.milliseconds).median()),
            "weight_max": sum(self.largest) / draws,
            "effective_sample_size": sum(self.sizes) / draws / budget,
            "kept": self.kept,
        }


def draw_all(
    arm: PopulationScoring,
    scores: Scores | None,
    pools: Sequence[Tensor],
    budget: int,
    loss: LossUnit,
    history: History,
    moments: Tensor | None,
) -> Draws:
    """Lets a method choose out of each pool, each time as the step after the same history."""
    population = arm.population
    tokens, lengths = population.tokens.double(), population.lengths.double()
    coefficients = torch.zeros(len(pools), len(population), dtype=torch.float64)
    milliseconds, sizes, largest = [], [], []
    longer = scored = kept = 0.0
    for number, pool in enumerate(pools):
        arm.state = history.state  # each draw is the step after the same past
        start = time.perf_counter()
        chosen = arm.choose(pool, scores, budget, number, moments)
        milliseconds.append(1000 * (time.perf_counter() - start))
        if arm.step.selector.weighted or loss == "example_mean":  # uniform selectors have weights of one
            coefficients[number, chosen.rows] = chosen.selection.weights.double().cpu() / budget
        else:  # what is trained is the mean over the chosen tokens
            coefficients[number, chosen.rows] = tokens[pool].mean() / tokens[chosen.rows].sum()
        sizes.append(chosen.selection.effective_sample_size)
        largest.append(chosen.selection.weight_max)
        longer += float(lengths[chosen.rows].mean() / lengths[pool].mean())
        scored += float(lengths[chosen.exact].sum() / lengths[pool].sum())
        kept += chosen.kept
    return Draws(
        coefficients_KP=coefficients,
        milliseconds=milliseconds,
        sizes=sizes,
        largest=largest,
        tokens_cost=longer / len(pools),
        scored_share=scored / len(pools),
        kept=kept / len(pools),
    )
