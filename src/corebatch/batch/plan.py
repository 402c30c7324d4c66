"""What is known of a step's pool before any forward, and which rows of it are scored; the same on every rank.

Shape suffixes: N candidates of the pool, E rows that are scored exactly, M chosen rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from corebatch.batch.method import CoresetStep
from corebatch.batch.pool import Pool
from corebatch.memory import FeatureMemory, Recalled
from corebatch.scoring import LossUnit, extents
from corebatch.seeds import seeded
from corebatch.selectors import make_selector
from corebatch.types import Selection, SourceGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which rows are scored.

    Attributes:
        candidates: LongTensor [N], ascending: positions in the pool that may be chosen.
        budget: M.
        exact: LongTensor [E], ascending: positions that are scored.
        recalled: what the memory says of the candidates, or None.
        inclusion: float64 [E], for two phases: the probability with which each row came into the first.
    """

    candidates: Tensor
    budget: int
    exact: Tensor
    recalled: Recalled | None = None
    inclusion: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """A pool at a step, and what a strategy plans and chooses with.

    Attributes:
        pool: of all ranks.
        budget: M.
        step: the number of the optimizer step; with the method's seed it determines all randomness.
        method: the stages that choose among rows with features.
        loss: the unit of features.
        memory: of examples; empty where nothing is remembered.
    """

    pool: Pool
    budget: int
    step: int
    method: CoresetStep
    loss: LossUnit
    memory: FeatureMemory

    @property
    def candidates(self) -> Tensor:
        """LongTensor [N], ascending: positions in the pool that may be chosen."""
        return self.pool.eligible.nonzero().flatten()

    def recall(self, max_age: int | None = None) -> Recalled:
        """What is known of the candidates; what is older than `max_age` steps is not (None: for ever)."""
        rows = self.candidates
        return self.memory.recall(self.pool.ids[rows], extents(self.pool.tokens[rows], self.loss), self.step, max_age)

    def factors(self, rows: Tensor) -> Tensor | None:
        """By how much the losses of rows of the pool (LongTensor [K]) count, float64 [K]; None: ones."""
        return None if self.pool.factors is None else self.pool.factors[rows]

    def claimed(self, sizes: Tensor, rows: Tensor) -> Tensor:
        """Sizes [K] of rows of the pool as they count in what the step claims."""
        factors = self.factors(rows)
        return sizes if factors is None else sizes * factors

    def costs(self, rows: Tensor) -> Tensor | None:
        """Tokens of rows of the pool (LongTensor [K]), float64 [K], for a selector whose inclusion goes by them."""
        if not self.method.selector.draws or self._cost_power is None:
            return None
        return self.pool.lengths[rows].double().clamp(min=1)

    def by_size(self, sizes: Tensor, budget: int, purpose: str, trained: Tensor | None = None) -> Selection:
        """A choice with inclusion in proportion to sizes, with a generator for the purpose.

        Args:
            trained: LongTensor, positions of the rows in the pool, if what is chosen is trained, and costs what it
                costs.
        """
        generator = seeded(self.method.seed, self.step, purpose)
        costs = None if trained is None else self.costs(trained)
        importance = make_selector("importance", {"cost_power": self._cost_power})
        return importance.select(sizes.clamp(min=0).float().unsqueeze(1), budget, generator, costs=costs)

    @property
    def _cost_power(self) -> float | None:
        """The method's, if its selector draws by cost."""
        return getattr(self.method.selector, "cost_power", None)

    def whole(self) -> list[SourceGroup]:
        """The candidates as one group, whatever their sources."""
        return [SourceGroup(name="rest", members=torch.arange(len(self.candidates)), budget=self.budget)]
