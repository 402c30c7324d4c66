"""Two-phase sampling: a free proxy draws the rows that are scored.

Shape suffixes: N candidates, E rows that are scored, M chosen rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from corebatch.batch.method import Choice, CoresetStep
from corebatch.batch.plan import Draw, Plan
from corebatch.batch.strategies.base import Need, OtherSettings, Remembering, needs_of_parts
from corebatch.batch.strategies.options import is_number, one_of, option
from corebatch.errors import ConfigError
from corebatch.scoring import Scores
from corebatch.types import Selection


@dataclass(frozen=True, kw_only=True)
class TwoPhase(Remembering):
    """A free proxy draws a part of the pool, the scorer runs on that alone (Neyman 1938).

    Attributes:
        share: of the pool, above 0 and at most 1; None: halfway between the small and the large batch.
        proxy: "tokens": the square root of trained tokens; "norm": the remembered feature's length; "loss": the
            remembered loss. What is not known is guessed from the trained tokens.
    """

    share: float | None = option(
        None, "above 0 and at most 1", lambda value: value is None or (is_number(value) and 0 < value <= 1)
    )
    proxy: Literal["tokens", "norm", "loss"] = one_of("tokens", "tokens", "norm", "loss")

    way: ClassVar[str] = "two_phase"
    in_words: ClassVar[str] = "a part of the rows that are drawn"
    step_options: ClassVar[tuple[str, ...]] = ("share", "proxy")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proxy != "norm" and not self.learn:
            raise ConfigError(
                f"coreset.scoring.learn does nothing with proxy {self.proxy!r}: only norms are learnt from training. "
                "Leave it out, or use proxy 'norm'."
            )

    def needs(self, others: OtherSettings, step: CoresetStep) -> Sequence[Need]:
        least = 1 / others.pool_factor
        enough = self.share is None or self.share * others.pool_factor > 1 or others.pool_factor == 1
        return (
            *needs_of_parts(others, step),
            (step.feedback is None, "feedback none: what the first phase is off by is not known. Found feedback"),
            (
                enough,
                f"a share above 1 / pool_factor = {least:.3g}: with fewer rows in the first phase there would be "
                f"nothing to choose in the second. Found {self.share}",
            ),
        )

    def plan(self, draw: Draw) -> Plan:
        """Draws the rows that are scored, in proportion to the proxy."""
        candidates = draw.candidates
        whole = len(candidates)
        if self.share is None:
            count = math.ceil((draw.budget + whole) / 2)
        else:
            count = max(draw.budget, math.ceil(self.share * whole))
        if count >= whole:
            return super().plan(draw)
        recalled = draw.recall()
        sizes = draw.claimed(recalled.losses if self.proxy == "loss" else recalled.sizes, candidates)
        first = draw.by_size(sizes, count, "first phase")
        inclusion = count / (whole * first.weights.double())
        return Plan(candidates=candidates, budget=draw.budget, exact=candidates[first.indices], inclusion=inclusion)

    def choose(self, draw: Draw, plan: Plan, scores: Scores | None, second_moments: Tensor | None) -> Choice:
        """Chooses among the rows of the first phase. Row i stands for E / (N pi_i) rows, so its feature and its weight
        are multiplied by that: the estimate stays one of the whole pool's mean gradient (Saerndal, Swensson and
        Wretman 1992, chapter 9)."""
        if plan.inclusion is None:
            return super().choose(draw, plan, scores, second_moments)
        assert scores is not None
        stands_for = len(plan.exact) / (len(plan.candidates) * plan.inclusion)
        scaled = Scores(
            features=scores.features * stands_for.to(scores.features).unsqueeze(1),
            losses=scores.losses,
            tokens=scores.tokens,
        )
        sources = draw.pool.sources[plan.exact]
        chosen = draw.method.choose(
            scaled,
            sources,
            draw.budget,
            step=draw.step,
            second_moments=second_moments,
            costs=draw.costs(plan.exact),
            factors=draw.factors(plan.exact),
            ids=draw.pool.ids[plan.exact],
        ).selection
        rows = chosen.indices.cpu()
        weights = (chosen.weights.double().cpu() * stands_for[rows]).float()
        indices = torch.searchsorted(plan.candidates, plan.exact[rows])
        return Choice(selection=Selection(indices=indices, weights=weights), groups=draw.whole())

    @property
    def remembers(self) -> bool:
        return self.proxy != "tokens"

    @property
    def learns(self) -> bool:
        return self.proxy == "norm" and self.learn

    def price(self, supposed: Mapping[str, Any], scored: float) -> float:
        return scored
