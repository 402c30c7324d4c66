"""Aioli (Chen et al. 2024, arXiv 2411.05735): how sources help each other is learnt in the run, by short sweeps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from corebatch.errors import ConfigError
from corebatch.options import check_count
from corebatch.sampling.online.base import FLOOR, OnlineShares, check_number
from corebatch.seeds import seeded


class Aioli(OnlineShares):
    """In every round of `period` steps, `sweeps` times over all sources i in random order, `sweep_steps` steps are
    trained by the mixture P_i, which has `focus` of source i and equal shares of the others. What they take off the
    held-out losses L_j gives the matrix A of the law L_j(t + 1) = L_j(t) - sum_i A[j, i] p_i:

        B[j, i] = mean over sweeps of the fall of L_j under P_i,      A = B P^-1      (Algorithm 2, LearnParams)

    A is shifted to be nowhere negative and scaled to the sum 1, as in the official code, and

        p_i proportional to p_i exp(eta sum_j A[j, i])                                 (Algorithm 1)

    by which the rest of the round is trained. With `ema` the matrices of rounds are averaged, ema A_before +
    (1 - ema) A, and p is proportional to start exp(eta sum_j A[j, i]) instead. Defaults are those of the official
    script for two sources (its `lp_rounds`, `lp_steps`, `one_hot_factor`, `update_steps`); it recommends 4 to 6 sweeps
    and eta of 0.1 to 0.5. Every round costs sweeps x S + 1 evaluations.

    What differs: the run's first step is trained before anything is measured; `floor` is ours, and plays no part in
    P_i.

    Args:
        eta: step size.
        period: optimizer steps of a round.
        sweeps: over all sources, in a round.
        sweep_steps: that a source's mixture is trained, in a sweep.
        focus: above 1/S and at most 1.
        ema: in [0, 1), or None.
        floor, start: as in `OnlineShares`.
    """

    name = "aioli"
    kept = ("weights", "rounds", "position", "before", "falls", "matrix")

    def __init__(
        self,
        *,
        eta: float = 0.2,
        period: int = 250,
        sweeps: int = 4,
        sweep_steps: int = 4,
        focus: float = 0.625,
        ema: float | None = None,
        floor: float = FLOOR,
        start: str = "equal",
    ) -> None:
        super().__init__(floor, start)
        self.eta = check_number("eta", eta, 0, above=True)
        for name, value in (("period", period), ("sweeps", sweeps), ("sweep_steps", sweep_steps)):
            check_count(name, value)
        self.period, self.sweeps, self.sweep_steps = period, sweeps, sweep_steps
        self.focus = check_number("focus", focus, 0, 1, above=True)
        self.ema = None if ema is None else check_number("ema", ema, 0, math.nextafter(1, 0))

    def _begin(self) -> None:
        count = len(self.names)
        taken = self.sweeps * count * self.sweep_steps
        if taken + 2 > self.period:
            raise ConfigError(
                f"online aioli: sweeps x sources x sweep_steps, {self.sweeps} x {count} x {self.sweep_steps} = {taken} "
                f"steps, should leave some of a round. Found period {self.period}."
            )
        if self.focus * count <= 1:
            raise ConfigError(
                f"online aioli: focus should be above 1/{count} with {count} sources. Found {self.focus}."
            )
        self.rounds = self.position = torch.zeros((), dtype=torch.long)
        self.before = torch.zeros_like(self.weights)
        self.falls = torch.zeros(count, count, dtype=torch.float64)
        self.matrix = torch.full_like(self.falls, torch.nan)

    @property
    def needs_held_out(self) -> bool:
        return True

    @property
    def due(self) -> int | None:
        """After the first step or at a round's beginning, and then at the end of each mixture of its sweeps."""
        return max(1, int(self.rounds) * self.period) + int(self.position) * self.sweep_steps

    @property
    def shares(self) -> Tensor:
        return self._mixtures()[self._source] if int(self.position) else super().shares

    @property
    def _source(self) -> int:
        """Whose mixture is trained at a position of the round's sweeps, from 1."""
        sweep, place = divmod(int(self.position) - 1, len(self.names))
        order = torch.randperm(len(self.names), generator=seeded(self.seed, int(self.rounds), sweep, "aioli"))
        return int(order[place])

    def _mixtures(self) -> Tensor:
        """[S, S], P_i in row i."""
        count = len(self.names)
        mixtures = torch.full((count, count), (1 - self.focus) / (count - 1), dtype=torch.float64)
        return mixtures.fill_diagonal_(self.focus)

    def _observe(self, losses: Tensor, tokens: Tensor, step: int) -> None:
        if step < (self.due or 0):
            return
        if int(self.position):
            self.falls[:, self._source] += self.before - losses
        self.before = losses
        if int(self.position) < self.sweeps * len(self.names):
            self.position = self.position + 1
            return
        self._update()
        self.position, self.rounds = torch.zeros_like(self.position), self.rounds + 1
        self.falls = torch.zeros_like(self.falls)

    def _update(self) -> None:
        matrix = torch.linalg.solve(self._mixtures(), (self.falls / self.sweeps).T).T
        matrix = matrix - matrix.min().clamp(max=0)
        matrix = matrix / matrix.sum().clamp(min=torch.finfo(matrix.dtype).tiny)
        if self.ema is not None and not bool(self.matrix.isnan().any()):
            matrix = self.ema * self.matrix + (1 - self.ema) * matrix
        base = self.weights if self.ema is None else self.initial
        self.matrix, self.weights = matrix, torch.softmax(base.log() + self.eta * matrix.sum(0), 0)
