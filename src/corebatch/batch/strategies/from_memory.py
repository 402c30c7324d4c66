"""What strategies share that do not compute some features at a step.

Shape suffixes: N candidates, M chosen rows.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corebatch.batch.method import Choice, CoresetStep
from corebatch.batch.plan import Draw, Plan
from corebatch.batch.strategies.base import Need, OtherSettings, Strategy, needs_of_parts
from corebatch.batch.weights import part_scale
from corebatch.memory import Recalled
from corebatch.scoring import Scores
from corebatch.seeds import seeded
from corebatch.types import Selection


@dataclass(frozen=True, kw_only=True)
class FromMemory(Strategy):
    """A strategy by which some features of a pool are remembered, or guessed."""

    def needs(self, others: OtherSettings, step: CoresetStep) -> Sequence[Need]:
        return needs_of_parts(
            others,
            step,
            (others.normalise is None, f"normalise none. Found {others.normalise!r}"),
            (others.sparsify is None, f"sparsify none. Found {others.sparsify!r}"),
        )

    @property
    def max_age(self) -> int | None:
        """What is older, in optimizer steps, is not known any more; None: for ever."""
        return None

    @abstractmethod
    def scored(self, known: Tensor, step: int) -> Tensor:
        """BoolTensor [N]: which candidates are scored at a step, by what is known (BoolTensor [N])."""

    def plan(self, draw: Draw) -> Plan:
        candidates, recalled = draw.candidates, draw.recall(self.max_age)
        exact = candidates[self.scored(recalled.known, draw.step)]
        return Plan(candidates=candidates, budget=draw.budget, exact=exact, recalled=recalled)

    def choose(self, draw: Draw, plan: Plan, scores: Scores | None, second_moments: Tensor | None) -> Choice:
        if scores is not None and len(plan.exact) == len(plan.candidates):
            return super().choose(draw, plan, scores, second_moments)
        # What was scored just now is known as well.
        recalled = plan.recalled if scores is None else draw.recall(self.max_age)
        assert recalled is not None
        return _known_and_unknown(draw, recalled)


def _known_and_unknown(draw: Draw, recalled: Recalled) -> Choice:
    """Chooses apart among the rows whose features are known and among the others, where only a size is guessed.

    Without a direction a row cannot be balanced against others: swaps would favour what looks small, which is bias.
    Each part gets a share of the budget in proportion to its sizes, rounded at random, and its weights are multiplied
    by (M / N)(N_part / M_part).
    """
    budget, count = draw.budget, len(recalled.known)
    sizes = draw.claimed(recalled.sizes, draw.candidates)
    if budget == 1 and 0 < int(recalled.known.sum()) < count:  # one row cannot stand for both parts
        return Choice(selection=draw.by_size(sizes, 1, "unknown", draw.candidates), groups=draw.whole())
    of_known = _share(draw, recalled.known, sizes)
    rows, weights = [], []
    for known, wanted in ((True, of_known), (False, budget - of_known)):
        if not wanted:
            continue
        members = (recalled.known == known).nonzero().flatten()
        if known:
            selection = _among_known(draw, recalled, members, wanted)
        else:
            selection = draw.by_size(sizes[members], wanted, "unknown", draw.candidates[members])
        rows.append(members[selection.indices.cpu()])
        weights.append(selection.weights.double().cpu() * part_scale(count, budget, len(members), wanted))
    chosen, order = torch.cat(rows).sort()
    selection = Selection(indices=chosen, weights=torch.cat(weights)[order].float())
    return Choice(selection=selection, groups=draw.whole())


def _among_known(draw: Draw, recalled: Recalled, members: Tensor, budget: int) -> Selection:
    rows = draw.candidates[members]
    scores = Scores(
        features=recalled.features[members],
        losses=recalled.losses[members].float(),
        tokens=draw.pool.tokens[rows],
    )
    share = len(members) / len(recalled.known)
    sources, costs = draw.pool.sources[rows], draw.costs(rows)
    return draw.method.choose(
        scores,
        sources,
        budget,
        step=draw.step,
        share=share,
        costs=costs,
        factors=draw.factors(rows),
        ids=draw.pool.ids[rows],
    ).selection


def _share(draw: Draw, known_N: Tensor, sizes_N: Tensor) -> int:
    """How many of the chosen rows come from those that are known. Either part gets one at least if it has rows, since
    its gradient would be missed otherwise."""
    budget, known = draw.budget, int(known_N.sum())
    unknown = len(known_N) - known
    if not known or not unknown:
        return budget if known else 0
    total = float(sizes_N.sum())
    share = float(sizes_N[known_N].sum()) / total if total > 0 else known / (known + unknown)
    draw_up = float(torch.rand(1, generator=seeded(draw.method.seed, draw.step, "share")))
    low, high = max(1, budget - unknown), min(known, budget - 1)
    return min(max(math.floor(budget * share + draw_up), low), high)
