"""Passes over a data set of which rows that are learnt are left out, one after the other."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from corebatch.errors import DataError
from corebatch.memory import LossMemory
from corebatch.sampling.learnt import Known, LearntRows, PassRows
from corebatch.seeds import seeded

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Pass:
    """Where a pass begins among all rows that a run draws, its rows in their order, and their weights."""

    first: int
    rows: Tensor
    weights: Tensor | None

    @property
    def end(self) -> int:
        return self.first + len(self.rows)


class LearntPasses:
    """The passes of a run. Each is planned when its first row is asked for, by what is remembered then; what was
    planned goes into the checkpoint, so that a resumed run draws the same rows, and every rank plans alike.

    Args:
        method: chooses the rows of a pass.
        count: N, rows of the data set.
        seed: of the data.
        rows_of_run: gives how many rows the run draws in all, by which its last passes are whole.
        tell: whether this process tells the user of each pass.

    Attributes:
        memory: of the rows' losses.
        large: rows that all ranks draw for an optimizer step.
    """

    def __init__(
        self, method: LearntRows, count: int, *, seed: int, rows_of_run: Callable[[], int], tell: bool = False
    ) -> None:
        self.method, self.memory, self.large = method, LossMemory(count), 0
        self._seed, self._rows_of_run, self._tell = seed, rows_of_run, tell
        self._passes: list[_Pass] = []
        self._made = 0
        self._drawn = self._weights = torch.zeros(0)

    def row(self, position: int) -> int:
        """The row that a run draws at a position, from 0; positions are asked for in order."""
        while not self._passes or position >= self._passes[-1].end:
            self._passes.append(self._plan(self._passes[-1].end if self._passes else 0))
        found = self._at(position)
        return int(found.rows[position - found.first])

    def forget(self, position: int) -> None:
        """Positions before this one are not asked for again."""
        self._passes = [each for each in self._passes if each.end > position] or self._passes[-1:]

    def weights(self, step: int, ids: Tensor) -> Tensor | None:
        """1 over the probability with which the rows of an optimizer step came, float64 [N]; None: they all came.

        Args:
            step: from 0.
            ids: LongTensor [N], their numbers, ascending.

        Raises:
            DataError: other rows came than were planned.
        """
        first, end = step * self.large, (step + 1) * self.large
        self._drawn = self._weights = torch.zeros(0)
        parts = [each for each in self._passes if each.first < end and each.end > first]
        if all(each.weights is None for each in parts):
            return None
        rows, weights = [], []
        for each in parts:
            within = slice(max(first - each.first, 0), end - each.first)
            rows.append(each.rows[within])
            weights.append(torch.ones(len(rows[-1]), dtype=torch.float64))
            if each.weights is not None:
                weights[-1] = each.weights[within]
        drawn, order = torch.cat(rows).sort(stable=True)
        self._drawn, self._weights = drawn, torch.cat(weights)[order]
        if not torch.equal(drawn, ids):
            odd = sorted(set(drawn.tolist()) ^ set(ids.tolist())) or ids.tolist()
            raise DataError(
                f"coreset.sampling.learnt plans which rows come. At step {step + 1} others came than the {len(drawn)} "
                f"of the plan. Found {len(ids)} rows; in one of the two alone are {odd[:8]}. Leave out the sampler or "
                "loader that skips or repeats rows."
            )
        return self._weights

    def weights_of(self, ids: Tensor) -> Tensor:
        """Of some rows of the last step whose `weights` were asked for, [M]; of one that comes twice one of the two."""
        if not len(self._drawn):
            return torch.ones(len(ids), dtype=torch.float64)
        return self._weights[torch.searchsorted(self._drawn, ids)]

    def learn(self, ids: Tensor, losses: Tensor, sizes: Tensor, lengths: Tensor) -> None:
        """A step has been trained, on every rank.

        Args:
            ids: LongTensor [M], numbers of its rows.
            losses, sizes, lengths: [M], as in `LossMemory`.
        """
        self.memory.update(ids, losses, sizes, lengths)

    def line(self, step: int) -> dict[str, int]:
        """The fields of the record's line: the number of the pass, from 1, that the step's last row is of, and rows."""
        last = self._at((step + 1) * self.large - 1)
        later = sum(each.first > last.first for each in self._passes)
        return {"data_pass": self._made - later, "pass_rows": len(last.rows)}

    def _at(self, position: int) -> _Pass:
        return next(each for each in reversed(self._passes) if each.first <= position)

    def _plan(self, first: int) -> _Pass:
        count, number = len(self.memory.losses), self._made
        kept = PassRows(torch.arange(count))
        whole = first >= (1 - self.method.whole) * self._rows_of_run()
        if not whole:
            drawn = int(torch.randint(2**32, (), generator=seeded(self._seed, number, "learnt")))
            known = Known(**{key: value.double() for key, value in self.memory.state_dict().items()})
            kept = self.method.keep(known, number, np.random.RandomState(drawn))
        self._made += 1
        order = torch.randperm(len(kept.rows), generator=seeded(self._seed, number, "order"))
        if self._tell and number:
            why = " (the last passes have all)" if whole else ""
            logger.info(
                "Pass %d has %s of %s rows%s, by %s.",
                number + 1, f"{len(order):,}", f"{count:,}", why, self.method.name,
            )  # fmt: skip
        return _Pass(first, kept.rows[order], None if kept.weights is None else kept.weights[order])

    # ---- what a data set's plan is asked -------------------------------------------------------------------------

    def in_words(self, corrects: bool) -> str:
        """What comes, in a sentence or two.

        Args:
            corrects: whether the objective undoes it by weights.
        """
        undone = " Objective drawn has them count as they come, without weights." * (not corrects)
        return f"{self.method.in_words().capitalize()}; the last {self.method.whole:.3g} of the run has all.{undone}"

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint."""
        weights = [
            torch.ones(len(each.rows), dtype=torch.float64) if each.weights is None else each.weights
            for each in self._passes
        ]
        return {
            "made": torch.tensor(self._made),
            "firsts": torch.tensor([each.first for each in self._passes], dtype=torch.long),
            "counts": torch.tensor([len(each.rows) for each in self._passes], dtype=torch.long),
            "weighted": torch.tensor([each.weights is not None for each in self._passes], dtype=torch.bool),
            "rows": torch.cat([each.rows for each in self._passes]) if self._passes else torch.zeros(0).long(),
            "weights": torch.cat(weights) if weights else torch.zeros(0, dtype=torch.float64),
            **self.memory.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint."""
        counts = state["counts"].tolist()
        parts: Any = zip(
            state["firsts"].tolist(),
            state["rows"].split(counts),
            state["weights"].split(counts),
            state["weighted"].tolist(),
            strict=True,
        )
        self._passes = [_Pass(first, rows, weights if has else None) for first, rows, weights, has in parts]
        self._made = int(state["made"])
        self.memory.load_state_dict(state)


class LearntSampler(Sampler[int]):
    """The rows of a run's passes in their order. An epoch of the Trainer's is as many rows as the data set has, rounded
    up to whole optimizer steps: a pass that leaves rows out goes on into the next one.

    Args:
        passes: of the run.
        large: rows that all ranks draw for an optimizer step.
        step: gives the number of optimizer steps that were made.
    """

    def __init__(self, passes: LearntPasses, *, large: int, step: Callable[[], int]) -> None:
        self.passes, self._step = passes, step
        passes.large = large
        self.steps = math.ceil(len(passes.memory.losses) / large)

    def __len__(self) -> int:
        return self.steps * self.passes.large

    def __iter__(self) -> Iterator[int]:
        first = self._step() // self.steps * len(self)
        self.passes.forget(first)
        for position in range(first, first + len(self)):
            yield self.passes.row(position)
