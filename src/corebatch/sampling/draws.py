"""A sampler by which the sources of a data set come with shares of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from corebatch.sampling.shares import DrawPlan
from corebatch.seeds import seeded
from corebatch.sources import apportioned

PASSES_AT_ONCE = 4096
"""Rows of a small source that are put into order together: many passes of few rows."""


class SourceSampler(Sampler[int]):
    """Rows of each source in shuffled passes, in an order in which sources have their shares.

    Over each stretch of steps with equal shares a source has its share of the rows, up to a rounding that is drawn, and
    the sources come in an order that is drawn: with the shares of the data it is a shuffle. All of it depends on the
    seed, the plan and the number of the epoch alone, so that every rank and a resumed run draw the same rows. An epoch
    is rounded up to whole optimizer steps.

    Args:
        plan: the shares.
        sources: LongTensor [rows of the data set], the number of each row's source.
        large: rows that all ranks draw for an optimizer step.
        seed: of the data.
        step: gives the number of optimizer steps that were made.
    """

    def __init__(self, plan: DrawPlan, sources: Tensor, *, large: int, seed: int, step: Callable[[], int]) -> None:
        self.plan, self._large, self._seed, self._step = plan, large, seed, step
        self.steps = math.ceil(plan.rows_of_epoch() / large)
        self._members = [(sources == source).nonzero().flatten() for source in plan.sources]
        self._before: list[Tensor] = [torch.zeros(len(plan.sources), dtype=torch.long)]
        self._steps_of_run = 0

    def __len__(self) -> int:
        return self.steps * self._large

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self._step() // self.steps).tolist())

    def order(self, epoch: int) -> Tensor:
        """The rows of an epoch, from 0: LongTensor [len(self)]."""
        places, counts = seeded(self._seed, epoch, "places"), self._counts(epoch)
        kinds = []
        for stretch in counts:
            one = torch.repeat_interleave(torch.arange(len(stretch)), stretch)
            kinds.append(one[torch.randperm(len(one), generator=places)])
        by_source = torch.sort(torch.cat(kinds), stable=True).indices
        total, first = torch.stack(counts).sum(dim=0), self._drawn_before(epoch)
        rows = [self._rows(i, int(first[i]), int(count), epoch) for i, count in enumerate(total)]
        order = torch.empty(len(self), dtype=torch.long)
        order[by_source] = torch.cat(rows)
        return order

    def _counts(self, epoch: int) -> list[Tensor]:
        """LongTensor [S] for each stretch of an epoch's steps with equal shares: rows of each source."""
        generator = seeded(self._seed, 0 if self.plan.sampling.epochs == "fixed" else epoch, "shares")
        stretches: list[tuple[Tensor, int]] = []
        changes = self.plan.sampling.changes
        for step in range(epoch * self.steps, (epoch + 1) * self.steps) if changes else (0,):
            shares = self.plan.shares(step)
            if stretches and torch.equal(stretches[-1][0], shares):
                stretches[-1] = (shares, stretches[-1][1] + 1)
            else:
                stretches.append((shares, 1 if changes else self.steps))
        return [apportioned(shares, steps * self._large, generator) for shares, steps in stretches]

    def _drawn_before(self, epoch: int) -> Tensor:
        """LongTensor [S]: rows of each source that came in earlier epochs and do not come again yet."""
        if self.plan.sampling.epochs == "fixed":
            return self._before[0]
        if self._steps_of_run != self.plan.steps():  # a longer run has another schedule
            self._steps_of_run, self._before = self.plan.steps(), self._before[:1]
        while len(self._before) <= epoch:
            self._before.append(self._before[-1] + torch.stack(self._counts(len(self._before) - 1)).sum(dim=0))
        return self._before[epoch]

    def _rows(self, source: int, first: int, count: int, epoch: int) -> Tensor:
        """The rows of a source, by its place among the S, from its draw `first` on: LongTensor [count]."""
        members = self._members[source]
        if self.plan.sampling.epochs == "fixed":
            passes, rest = divmod(count, len(members))
            generator = seeded(self._seed, epoch, source, "fixed")
            last = self._passes(source, 0)[:rest]
            last = last[torch.randperm(rest, generator=generator)]
            return members[torch.cat([_shuffled(passes, len(members), generator), last])]
        pieces, at_once = [torch.zeros(0, dtype=torch.long)], self._at_once(source) * len(members)
        while count:
            block, start = divmod(first, at_once)
            pieces.append(self._passes(source, block)[start : start + count])
            first, count = first + len(pieces[-1]), count - len(pieces[-1])
        return members[torch.cat(pieces)]

    def _at_once(self, source: int) -> int:
        return max(1, PASSES_AT_ONCE // len(self._members[source]))

    def _passes(self, source: int, block: int) -> Tensor:
        """The passes of a source that are put into order together: positions among its rows."""
        generator = seeded(self._seed, block, source, "passes")
        return _shuffled(self._at_once(source), len(self._members[source]), generator)


def _shuffled(passes: int, count: int, generator: torch.Generator) -> Tensor:
    """Several times 0 to count - 1, each time in another order: LongTensor [passes x count]."""
    return torch.rand(passes, count, dtype=torch.float64, generator=generator).argsort(dim=1).flatten()
