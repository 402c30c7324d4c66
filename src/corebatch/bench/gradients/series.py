"""A series of steps as training makes them: pools drawn in epochs, and what a method chooses of one after the other.

The weights of the model stand still; what a method carries from step to step (CoLM's Adam map, past errors) moves on.

Shape suffixes: P population, N large batch, M small batch, T steps, B pools, R repeated draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from corebatch.batch.pieces import split
from corebatch.bench.gradients.population import Chosen, PopulationScoring
from corebatch.scoring import LossUnit, Scores
from corebatch.seeds import seeded


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The large batches of a series.

    Attributes:
        population: P.
        pools_TN: LongTensor [T, N], numbers in the population, each row ascending. In each epoch a new permutation of
            the population is cut into disjoint pools; what is left of it does not come in this epoch.
        warm_up: how many steps come before the first that is measured; histories and carried errors fill in them.
        micro_batch: rows of a training micro-batch, by which positions are counted.
        ids_TN: LongTensor [T, N], by which error feedback knows rows again; None: by their numbers.
    """

    population: int
    pools_TN: Tensor
    warm_up: int = 0
    micro_batch: int = 8
    ids_TN: Tensor | None = None

    @staticmethod
    def of(
        population: int, large: int, draws: int, seed: int, *, warm_up: int = 0, micro_batch: int = 8, most: int = 2**62
    ) -> Series:
        """`draws` measured steps. most: of an epoch; rows that are left then do not come in it."""
        steps, each = warm_up + draws, min(most, population // large)
        epochs = [
            torch.randperm(population, generator=seeded(seed, "epoch", number))[: each * large].view(each, large)
            for number in range(-(-steps // each))
        ]
        pools_TN = torch.cat(epochs)[:steps].sort(dim=1).values
        return Series(population=population, pools_TN=pools_TN, warm_up=warm_up, micro_batch=micro_batch)

    def within(self, pass_steps: float, run_steps: float, each: int) -> Series:
        """As part of a run whose data are read once in so many steps, so that a row that comes again sooner stands for
        another one; after `run_steps` the next run begins, which knows no row of the one before. each: steps of an
        epoch of the series."""
        epochs = max(1, round(run_steps / each))
        copies = min(epochs, max(1, round(pass_steps / each)))
        epoch = torch.arange(len(self.pools_TN)) // each
        copy = epoch % epochs % copies + copies * (epoch // epochs)
        return replace(self, ids_TN=self.pools_TN + self.population * copy[:, None])

    @property
    def large_TP(self) -> Tensor:
        """float64 [measured T, P]: the coefficients of the large batches' means."""
        return large_batches(self.pools_TN[self.warm_up :], self.population)


def large_batches(pools_TN: Tensor, population: int) -> Tensor:
    """float64 [T, P]: 1/N for what is in a pool."""
    return torch.zeros(len(pools_TN), population, dtype=torch.float64).scatter_(1, pools_TN, 1 / pools_TN.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What one method chose in the measured steps of a series.

    Attributes:
        coefficients_TP: of the estimates, float64 [T, P].
        select_ms: median time to choose.
        weight_max, effective_sample_size: of the weights, means over steps; the latter as a share of M.
        kept: mean of the rows that were taken with their whole source.
        tokens_cost: mean of the chosen's tokens by those of as many mean rows of the large batch.
        positions_cost: the same of padded positions, the rows of both sorted by length and cut into micro-batches.
        scored_share: mean of the scored rows' tokens by those of the large batch.
        runs_forwards: whether scoring them takes a forward.
    """

    coefficients_TP: Tensor
    select_ms: float
    weight_max: float
    effective_sample_size: float
    kept: float
    tokens_cost: float
    positions_cost: float
    scored_share: float
    runs_forwards: bool

    def fields(self) -> dict[str, Any]:
        """Those of a measurement that are told as they are."""
        return {name: getattr(self, name) for name in ("select_ms", "weight_max", "effective_sample_size", "kept")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chooses:
    """A method on a population.

    Attributes:
        make: the method as it is before its first step.
        scores: of the population, features of today; None where a method looks at its memory alone.
        loss: the unit of the loss.
        moments: the optimizer's, in the order of the features, for a normaliser that scales by them.
    """

    make: Callable[[], PopulationScoring]
    scores: Scores | None
    loss: LossUnit
    moments: Tensor | None = None

    def of(self, series: Series, budget: int) -> Choices:
        """Chooses out of each pool of a series in turn."""
        arm, pools, measured = self.make(), series.pools_TN, len(series.pools_TN) - series.warm_up
        coefficients = torch.zeros(measured, series.population, dtype=torch.float64)
        milliseconds, others = [], []
        for number, pool in enumerate(pools):
            ids = None if series.ids_TN is None else series.ids_TN[number]
            start = time.perf_counter()
            chosen = arm.choose(pool, self.scores, budget, number, self.moments, ids)
            seconds = time.perf_counter() - start
            if number < series.warm_up:
                continue
            coefficients[number - series.warm_up, chosen.rows] = self._coefficients(arm, pool, chosen)
            milliseconds.append(1000 * seconds)
            others.append(_told(arm.population.lengths, pool, chosen, series.micro_batch))
        largest, size, kept, tokens, padded, scored = torch.tensor(others, dtype=torch.float64).mean(dim=0).tolist()
        return Choices(
            coefficients_TP=coefficients,
            select_ms=float(torch.tensor(milliseconds).median()),
            weight_max=largest,
            effective_sample_size=size,
            kept=kept,
            tokens_cost=tokens,
            positions_cost=padded,
            scored_share=scored,
            runs_forwards=arm.runs_forwards,
        )

    def again(self, pools_BN: Tensor, budget: int, repeats: int) -> Tensor:
        """float64 [B, R, P]: coefficients of independent choices out of the same pools, each by a method without a
        past."""
        coefficients = []
        for number in range(len(pools_BN) * repeats):
            arm, pool = self.make(), pools_BN[number // repeats]
            chosen = arm.choose(pool, self.scores, budget, number, self.moments)
            row = torch.zeros(len(arm.population), dtype=torch.float64)
            row[chosen.rows] = self._coefficients(arm, pool, chosen)
            coefficients.append(row)
        return torch.stack(coefficients).view(len(pools_BN), repeats, -1)

    def _coefficients(self, arm: PopulationScoring, pool: Tensor, chosen: Chosen) -> Tensor:
        """float64 [M]: what the gradients of the chosen are multiplied by (`batch/weights.py`), beside 1/N each for
        those of the large batch."""
        count = len(chosen.rows)
        if arm.step.selector.weighted or self.loss == "example_mean":  # uniform selectors have weights of one
            return chosen.selection.weights.double().cpu() / count
        # What is trained is the mean over the chosen tokens, each with the u_i of its example.
        tokens = arm.population.tokens * arm.population.weights
        return (tokens[pool].mean() / tokens[chosen.rows].sum()).expand(count)


def _told(lengths: Tensor, pool: Tensor, chosen: Chosen, micro_batch: int) -> tuple[float, ...]:
    """Of one step, what `Choices` has the means of."""
    whole, taken = lengths[pool], lengths[chosen.rows]
    padded = positions(taken, micro_batch) / len(taken) / (positions(whole, micro_batch) / len(whole))
    return (
        chosen.selection.weight_max,
        chosen.selection.effective_sample_size / len(taken),
        chosen.kept,
        float(taken.double().mean() / whole.double().mean()),
        padded,
        float(lengths[chosen.exact].sum() / whole.sum()),
    )


def positions(lengths: Tensor, rows: int) -> int:
    """Padded positions of examples of so many tokens, sorted by length and cut into micro-batches of about so many
    rows, all alike."""
    order = lengths.sort(descending=True).values.tolist()
    return sum(len(part) * part[0] for part in split(order, -(-len(order) // rows)))
