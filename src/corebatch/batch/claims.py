"""The objective of a run, step by step: by how much each row of a large batch counts in what is claimed.

Shape suffixes: N rows of the large batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from corebatch.errors import ConfigError
from corebatch.objective import Objective

if TYPE_CHECKING:
    from corebatch.batch.online import OnlineObjective


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What a data set has of each source, by number.

    Attributes:
        names: of the sources.
        tokens: trained tokens.
    """

    names: Mapping[int, str]
    tokens: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Claim:
    """What a step claims of the rows of its large batch.

    Attributes:
        factors: float64 [N], a_i u_i times the row's own weight; None: ones.
        parts: float64 [N], what each row adds to that by which the update is divided: a_i times its trained tokens, or
            in a mean over examples a_i.
        total: the sum of the parts over the large batch, where these are not all of its rows.
    """

    factors: Tensor | None
    parts: Tensor
    total: float | None = None

    def take(self, rows: Tensor) -> Claim:
        """Of some of the rows (LongTensor)."""
        return Claim(None if self.factors is None else self.factors[rows], self.parts[rows], self.total)


Corrections = Callable[[int], Mapping[int, float] | None]
"""a_s by source at an optimizer step, or None for ones."""
RowCorrections = Callable[[int, Tensor], Tensor | None]
"""a_i of the rows (LongTensor [N], ascending) of an optimizer step, float64 [N], or None for ones."""


class Claims:
    """What the steps of a run claim.

    Args:
        objective: of the run.

    Attributes:
        counts: over the data set, where the objective goes by source.
        corrections: of rows that are drawn more or less often than they are in the data, or None.
        row_corrections: the same row by row, or None.
        row_weights: float64 [examples of the data set], the values of `weight_column`, or None.
        done: the share of the run that came before this step, for a schedule.
        online: the shares of an objective that is online, or None.
    """

    def __init__(self, objective: Objective | None = None) -> None:
        self.objective = objective or Objective("tokens")
        self.counts: TokenCounts | None = None
        self.corrections: Corrections | None = None
        self.row_corrections: RowCorrections | None = None
        self.row_weights: Tensor | None = None
        self.done: float | None = None
        self.online: OnlineObjective | None = None

    def check(self) -> None:
        """Raises ConfigError for a source that the objective names and the data set has not, or that has no trained
        token."""
        assert self.counts is not None
        for source, count in self.counts.tokens.items():
            if not count:
                raise ConfigError(
                    f"coreset.objective {self.objective.plain()!r} goes by sources, which should have trained tokens. "
                    f"Found none in {self.counts.names[source]!r}."
                )
        for objective in self.objective.parts:
            if objective.by_source and objective.online is None:
                source_weights(objective, self.counts)

    def of(self, ids: Tensor, sources: Tensor, tokens: Tensor, step: int) -> Claim:
        """What a step claims.

        Args:
            ids, sources, tokens: LongTensors [N] on the CPU: example ids, numbers of sources, trained tokens.
            step: the number of the optimizer step, from 0.
        """
        drawn = self._corrections(ids, sources, step)
        parts = torch.ones(len(tokens), dtype=torch.float64) if self.objective.by_example else tokens.double()
        if drawn is not None:
            parts = parts * drawn
        factors = _times(drawn, self._objective(sources, tokens, drawn))
        if self.row_weights is not None:
            factors = _times(factors, self.row_weights[ids])
        return Claim(factors, parts)

    def _corrections(self, ids: Tensor, sources: Tensor, step: int) -> Tensor | None:
        if self.row_corrections is not None:
            return self.row_corrections(step, ids) if self.objective.corrects else None
        found = self.corrections(step) if self.corrections is not None and self.objective.corrects else None
        return None if found is None else _by_source(found, sources)

    def _objective(self, sources: Tensor, tokens: Tensor, drawn: Tensor | None) -> Tensor | None:
        """u_i; None for ones."""
        if self.objective.schedule is None:
            return self._single(self.objective, sources, tokens, drawn)
        assert self.done is not None, "how far the run is, is known before its first step"
        before, after, share = self.objective.schedule.at(self.done)
        other = self._single(after, sources, tokens, drawn, examples=True)
        if share == 1:
            return other
        one = self._single(before, sources, tokens, drawn, examples=True)
        ones = torch.ones(len(tokens), dtype=torch.float64)
        return (1 - share) * (ones if one is None else one) + share * (ones if other is None else other)

    def _single(
        self, objective: Objective, sources: Tensor, tokens: Tensor, drawn: Tensor | None, *, examples: bool = False
    ) -> Tensor | None:
        """u_i of an objective that is no schedule.

        Args:
            examples: whether a mean over examples is to be had in the unit of tokens.
        """
        if objective.by_example and examples:
            often = torch.ones(len(tokens), dtype=torch.float64) if drawn is None else drawn
            return float((often * tokens).sum() / often.sum().clamp(min=1)) / tokens.clamp(min=1).double()
        if not objective.by_source:
            return None
        if self.online is not None:
            return _by_source(self.online.weights, sources)
        assert self.counts is not None, "sources are counted before the first step"
        return _by_source(source_weights(objective, self.counts), sources)


def source_weights(objective: Objective, counts: TokenCounts) -> dict[int, float]:
    """u of each source with trained tokens: its share in the objective over its share of the trained tokens."""
    tokens = {counts.names[source]: count for source, count in counts.tokens.items() if count}
    shares, total = objective.of_sources(tokens), sum(tokens.values())
    assert shares is not None
    return {source: shares[counts.names[source]] * total / count for source, count in counts.tokens.items() if count}


def _by_source(values: Mapping[int, float], sources: Tensor) -> Tensor:
    """float64 [N]: each row's by its source; a source of no trained tokens counts nothing."""
    kinds, places = sources.unique(return_inverse=True)
    return torch.tensor([values.get(kind, 0.0) for kind in kinds.tolist()], dtype=torch.float64)[places]


def _times(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one * other
