"""The trainer's scoring on a population of examples: the same code that a step runs, on a pool made by hand.

Shape suffixes: P population, N large batch, M small batch, F feature columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from corebatch.batch.plan import Plan
from corebatch.batch.pool import Pool
from corebatch.batch.scoring import Scoring
from corebatch.bench.gradients.methods import Method
from corebatch.distributed.ranks import Ranks
from corebatch.errors import InputError
from corebatch.memory import FeatureMemory
from corebatch.model.rows import Padding, row_spans, trained_tokens
from corebatch.sampling.tags import Names, Sources
from corebatch.scoring import Scores
from corebatch.seeds import seeded
from corebatch.trainer.config import CoresetConfig
from corebatch.types import Selection

ROWS_AT_A_TIME = 16
"""Of the longest rows, in one forward of the population; more of shorter ones."""

_PADDING = Padding(token=0)

Objective = Literal["tokens", "sources"]
"""What the large batch claims: the mean over trained tokens, or over sources, each by the mean over its tokens."""


@dataclass(frozen=True, slots=True)
class Population:
    """The examples that are measured on.

    Attributes:
        batches: their rows as collated dictionaries, in order.
        lengths: LongTensor [P] on the CPU: tokens without padding.
        tokens: LongTensor [P] on the CPU: trained tokens.
        sources: LongTensor [P] on the CPU: the number of each row's source.
        table: the sources' names, and how many examples each has in the data set, by which small ones are small.
        weights: float64 [P]: u_i, by which the objective multiplies each example's loss.
    """

    batches: Sequence[Mapping[str, Tensor]]
    lengths: Tensor
    tokens: Tensor
    sources: Tensor
    table: Sources
    weights: Tensor

    @staticmethod
    def of(
        batches: Sequence[Mapping[str, Tensor]],
        sources: Tensor | None = None,
        table: Sources | None = None,
    ) -> Population:
        """Without `sources` there is one; without `table` the rows themselves are counted."""
        spans = torch.cat([row_spans(batch) for batch in batches])
        tokens = torch.cat([trained_tokens(batch["labels"]) for batch in batches]).cpu()
        sources = torch.zeros(len(spans), dtype=torch.long) if sources is None else sources.cpu()
        if len(sources) != len(spans):
            raise InputError(f"There should be a source for each of {len(spans)} rows. Found {len(sources)}.")
        table = Sources(names=Names(), counts=dict(Counter(sources.tolist()))) if table is None else table
        ones = torch.ones(len(spans), dtype=torch.float64)
        return Population(batches, spans[:, 1] - spans[:, 0], tokens, sources, table, ones)

    def under(self, objective: Objective) -> Population:
        """With the objective's u_i; for "sources" (1 / S) / (the source's share of the population's trained tokens)."""
        weights = torch.ones(len(self), dtype=torch.float64)
        if objective == "sources":
            kinds, places = self.sources.unique(return_inverse=True)
            trained = torch.zeros(len(kinds), dtype=torch.float64).index_add_(0, places, self.tokens.double())
            weights = (trained.sum() / len(kinds) / trained.clamp(min=1))[places]
        return replace(self, weights=weights)

    def __len__(self) -> int:
        return len(self.lengths)

    def pool(self, rows: Tensor | None = None) -> Pool:
        """Some rows (LongTensor [N], ascending), or all, as a step sees them, on one rank."""
        rows = torch.arange(len(self)) if rows is None else rows
        zeros = torch.zeros_like(rows)
        return Pool(
            ids=rows,
            sources=self.sources[rows],
            lengths=self.lengths[rows],
            tokens=self.tokens[rows],
            ranks=zeros,
            rows=rows,
            batches=zeros,
            widths=self.lengths[rows],
            eligible=torch.ones_like(rows, dtype=torch.bool),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What one step chose, and what it scored for it.

    Attributes:
        rows: LongTensor [M]: numbers in the population.
        selection: of the pool; its weights go with `rows`.
        exact: LongTensor: numbers in the population of what was scored.
        kept: how many rows were taken with their whole source.
    """

    rows: Tensor
    selection: Selection
    exact: Tensor
    kept: int = 0


class PopulationScoring:
    """A trainer's scoring, with its settings, on a population. What it carries from step to step begins empty.

    Scores and memories are those of the g_i; a choice sees u_i g_i.

    Args:
        coreset: the settings.
        population: the examples.
        memory: what is remembered of them, if the way of scoring remembers anything.
    """

    def __init__(self, coreset: CoresetConfig, population: Population, memory: FeatureMemory | None = None) -> None:
        self.population = population
        self.step = coreset.build()
        self.step.small_sources = population.table.small(coreset.small_sources)
        self.step.source_names = population.table.names
        self.scoring = Scoring(coreset.resolve_scoring(False), self.step, loss=coreset.unit, micro_batch=ROWS_AT_A_TIME)
        if memory is not None and self.scoring.memory is not None:
            self.scoring.memory.load_state_dict(memory.state_dict())
        self._seed = coreset.seed

    @property
    def runs_forwards(self) -> bool:
        """Whether the scorer needs a forward, and the selector looks at what it gives."""
        return self.scoring.scorer.needs_forward

    @property
    def by_inner_products(self) -> bool:
        """Whether the choice depends on features by their inner products alone."""
        step, metric = self.step, getattr(self.step.selector, "metric", "l2")
        return step.normalise is None and step.sparsify is None and metric in ("l2", "cosine")

    def score(self, model: Any, rows: Tensor | None = None) -> Scores:
        """Scores of some rows (LongTensor, ascending), or of all, in forwards over rows of falling length."""
        rows = torch.arange(len(self.population)) if rows is None else rows
        population = self.population
        scores = self.scoring.forwards.score(Ranks(), model, population.batches, population.pool(), rows, _PADDING)
        assert scores is not None
        return scores

    def _pool(self, rows: Tensor) -> Pool:
        """As a step under the objective sees it."""
        weights = self.population.weights[rows]
        return replace(self.population.pool(rows), factors=None if bool((weights == 1).all()) else weights)

    def remember(self, model: Any, known: float) -> FeatureMemory:
        """Fills the memory with features of a share `known` of the population, as the model gives them now.

        Which examples: the first ones of a permutation by the seed, so that a larger share holds a smaller one's.
        """
        count = max(1, round(known * len(self.population)))
        order = torch.randperm(len(self.population), generator=seeded(self._seed, "known"))
        rows = order[:count].sort().values
        plan = Plan(candidates=torch.arange(len(self.population)), budget=0, exact=rows)
        self.scoring.remember(self.population.pool(), plan, self.score(model, rows), 0)
        assert self.scoring.memory is not None
        return self.scoring.memory

    def looks_at_scores(self, pool: Tensor, budget: int) -> bool:
        """Whether a step on such a pool looks at scores of today."""
        return len(self.scoring.plan(self._pool(pool), budget, self._step_of(0)).exact) > 0

    def _step_of(self, draw: int) -> int:
        """The optimizer step that a draw stands for: where some of them do not score, one of those; the steps that do
        are `full`."""
        period = self.scoring.strategy.period or 1
        return draw * period + 1 if period > 1 else draw

    def look(self, model: Any) -> None:
        """Lets the scorer see the model, for a normaliser that asks it where its columns come from."""
        self.score(model, torch.arange(1))

    def choose(
        self,
        pool: Tensor,
        scores: Scores | None,
        budget: int,
        draw: int,
        second_moments: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> Chosen:
        """M of the pool's rows (LongTensor [N], ascending, numbers in the population). What is carried moves on.

        Args:
            scores: of the population; may be None where a step between two scorings looks at the memory alone.
            draw: the number of the step in its series; with the seed it determines all randomness.
            second_moments: the optimizer's, in the order of the features.
            ids: LongTensor [N], by which error feedback knows the rows again. A memory knows them by their numbers
                alone, so that with one nothing is carried for each row where ids are given.
        """
        made, step = self._pool(pool), self._step_of(draw)
        if ids is not None and self.scoring.memory is None:
            made = replace(made, ids=ids)
        elif ids is not None and self.step.feedback is not None:
            self.step.feedback.examples = 0.0
        plan = self.scoring.plan(made, budget, step)
        exact = pool[plan.exact]
        there = scores.take(exact) if scores is not None and len(exact) else None
        choice = self.scoring.choose(made, plan, there, step, second_moments)
        rows = pool[plan.candidates[choice.selection.indices.cpu()]]
        kept = sum(len(group.members) for group in choice.groups if group.keep)
        return Chosen(rows=rows, selection=choice.selection, exact=exact, kept=kept)


def in_few_columns(scores: Scores) -> Scores:
    """The same features turned into as many columns as there are rows, if they had more: their inner products are what
    they were, and a choice by these takes a fraction of the time."""
    features = scores.features
    if features.shape[1] <= len(features):
        return scores
    wide = features.double()
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    return replace(scores, features=(vectors * values.clamp(min=0).sqrt()).to(features.dtype))


def remembered(methods: Sequence[Method], model: Any, population: Population, seed: int) -> dict[str, FeatureMemory]:
    """What each method with a memory remembers if it is filled now, by `Method.remembered`."""
    memories: dict[str, FeatureMemory] = {}
    for method in methods:
        if method.remembered is not None and method.remembered not in memories:
            scoring = PopulationScoring(method.coreset(seed), population)
            memories[method.remembered] = scoring.remember(model, method.way.known)
    return memories
