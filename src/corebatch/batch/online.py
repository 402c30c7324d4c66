"""An online objective in a run: what is measured of sources goes in, what each of their tokens counts comes out.

Shape suffixes: S sources, N rows of the large batch, P feature columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from corebatch.batch.plan import Plan
from corebatch.batch.pool import Pool
from corebatch.objective import Objective
from corebatch.sampling.online import OnlineShares, make_online
from corebatch.scoring import Scores

DIGITS = 6
"""Of the shares that are recorded."""


class OnlineObjective:
    """The shares of a run's sources, which follow what its steps and evaluations measure; the same on every rank.

    Args:
        method: without a state yet.
        seed: of its randomness.
    """

    def __init__(self, method: OnlineShares, seed: int) -> None:
        self.method, self.seed = method, seed
        self._names: dict[int, str] = {}
        self._tokens: Tensor = torch.zeros(0, dtype=torch.float64)
        self._loaded: dict[str, Tensor] | None = None

    @classmethod
    def of(cls, objective: Objective, seed: int) -> OnlineObjective | None:
        """That of an objective which is online; None for others."""
        return None if objective.online is None else cls(make_online(objective.online, objective.options), seed)

    def begin(self, names: Mapping[int, str], tokens: Mapping[int, float]) -> None:
        """Before the first step; nothing changes where the run has begun.

        Args:
            names: of the sources, by number.
            tokens: trained tokens of each in the data set, by number; above 0.

        Raises:
            ConfigError: the method's options do not go with the sources.
        """
        if self._names:
            return
        self._names = {source: names[source] for source in sorted(tokens)}
        self._tokens = torch.tensor([tokens[source] for source in self._names], dtype=torch.float64)
        self.method.begin(list(self._names.values()), self._tokens, self.seed)
        if self._loaded is not None:
            self.method.load_state_dict(self._loaded)

    @property
    def weights(self) -> dict[int, float]:
        """By what a source's token losses count in the next step: its share over what it has of the trained tokens."""
        weights = self.method.shares * self._tokens.sum() / self._tokens
        return dict(zip(self._names, weights.tolist(), strict=True))

    def line(self, pool: Pool, plan: Plan, scores: Scores | None) -> dict[str, dict[str, float]]:
        """The fields of the record's line of a step that was chosen by these shares; what it was scored by is taken."""
        found = {"shares": self.shares, "average_shares": self.average}
        line = {
            key: {name: float(f"{share:.{DIGITS}g}") for name, share in shares.items()}
            for key, shares in found.items()
            if shares is not None
        }
        self.scored(pool, plan, scores)
        return line

    @property
    def shares(self) -> dict[str, float]:
        """Of the next step, by name."""
        return self._named(self.method.shares)

    @property
    def average(self) -> dict[str, float] | None:
        """The mean over the steps so far, by name, where that is the method's result."""
        found = self.method.average
        return None if found is None else self._named(found)

    def observe(self, losses: Mapping[int, tuple[float, float]], step: int) -> None:
        """Takes what was measured.

        Args:
            losses: (sum of token losses, tokens) by number of the source.
            step: optimizer steps made.
        """
        pairs = [losses.get(source, (0.0, 0.0)) for source in self._names]
        sums, tokens = torch.tensor(pairs, dtype=torch.float64).T
        self.method.observe(sums / tokens, tokens, step)  # 0 / 0 is NaN: not measured

    def scored(self, pool: Pool, plan: Plan, scores: Scores | None) -> None:
        """Takes the gradients by which the candidates were scored, if all of them were and the method follows them."""
        if not self.method.needs_gradients or scores is None:
            return
        eligible_E = pool.eligible[plan.exact]
        rows_N = plan.exact[eligible_E]
        if len(rows_N) < len(plan.candidates):
            return
        found = scores.take(eligible_E.nonzero().flatten()).features
        wide_NP = found.double() if found.device.type == "cpu" else found
        numbers_N, tokens_N = pool.sources[rows_N], pool.tokens[rows_N]
        # Products: `index_add_` would add in another order at each run on a GPU.
        member_SN = torch.stack([numbers_N == source for source in self._names]).double()
        self.method.observe_gradients(
            member_SN.to(wide_NP) @ wide_NP,
            member_SN @ wide_NP.square().sum(1).double().cpu(),
            member_SN.sum(1).long(),
            (member_SN @ tokens_N.double()).long(),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint."""
        return self.method.state_dict() if self._names else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint; `begin` takes it up."""
        self._loaded = dict(state) or None

    def _named(self, values: Tensor) -> dict[str, float]:
        return dict(zip(self._names.values(), values.tolist(), strict=True))
