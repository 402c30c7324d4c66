"""Skill-It (Chen et al. 2023, arXiv 2307.14430): more of the sources that help the sources whose loss is high."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import ConfigError
from corebatch.options import check_count
from corebatch.sampling.online.base import FLOOR, OnlineShares, check_number, names_of, numbers_by_name


class SkillIt(OnlineShares):
    """With A[i, j] saying how much training on source i lowers the loss of source j, every `period` steps

        p_i proportional to start_i exp(eta sum_{j in targets} A[i, j] sum_{last window periods} L_j)

    and before the first losses are known, start_i exp(eta sum_j A[i, j]) (Algorithm 1 of the paper, whose window is 3).
    eta is 0.1 to 0.8 in the official scripts, 0.2 for natural instructions.

    What differs: losses may also be those of what the steps of a period trained; a source that had none in a period has
    its last one, or the mean of the others'. `floor` is ours.

    Args:
        graph: A as {source i: {source j: number}}, absent entries being 0; the path of a JSON file with it; or
            "identity", by which a source helps itself alone. `skill_graph` makes it of short runs.
        eta: step size.
        period: optimizer steps between updates.
        window: periods whose losses are summed.
        targets: the sources that are to be learnt; None: all.
        losses: "held_out", or "training".
        floor, start: as in `OnlineShares`.
    """

    name = "skill_it"
    kept = ("weights", "history", "sums", "tokens", "updates")

    def __init__(
        self,
        *,
        graph: Mapping[str, Mapping[str, float]] | str | Path | None = None,
        eta: float = 0.2,
        period: int = 50,
        window: int = 3,
        targets: Sequence[str] | None = None,
        losses: str = "held_out",
        floor: float = FLOOR,
        start: str = "equal",
    ) -> None:
        super().__init__(floor, start)
        self.eta = check_number("eta", eta, 0, above=True)
        check_count("period", period)
        check_count("window", window)
        if losses not in ("held_out", "training"):
            raise ConfigError(f"losses should be held_out or training. Found {losses!r}.")
        self.period, self.window, self.losses = period, window, losses
        self.targets, self.graph = names_of("targets", targets), _checked(graph)

    @property
    def needs_held_out(self) -> bool:
        return self.losses == "held_out"

    @property
    def measured(self) -> tuple[str, ...]:
        return self.targets or self.names

    @property
    def due(self) -> int | None:
        return self._next if self.needs_held_out else None

    @property
    def _next(self) -> int:
        return (int(self.updates) + 1) * self.period

    def _begin(self) -> None:
        count, targets = len(self.names), self._places(self.targets, "targets")
        graph = torch.eye(count, dtype=torch.float64)
        if self.graph is not None:
            graph = torch.zeros_like(graph)
            for name, row in self.graph.items():
                place = self._places([name], "graph")[0]
                for other, value in zip(self._places(row, f"graph: {name}"), row.values(), strict=True):
                    graph[place, other] = value
        if targets:
            graph[:, [place for place in range(count) if place not in targets]] = 0
        self._graph_SS = graph
        self.history = torch.zeros(0, count, dtype=torch.float64)
        self.sums, self.tokens = torch.zeros_like(self.initial), torch.zeros_like(self.initial)
        self.updates = torch.zeros((), dtype=torch.long)
        self._set(torch.ones_like(self.initial))

    def _observe(self, losses: Tensor, tokens: Tensor, step: int) -> None:
        if self.needs_held_out and step < self._next:
            return
        seen = ~losses.isnan()
        self.sums = self.sums + torch.where(seen, losses * tokens, 0.0)
        self.tokens = self.tokens + torch.where(seen, tokens, 0.0)
        if step < self._next:
            return
        self.updates = torch.tensor(step // self.period)
        means = self.sums / self.tokens  # NaN where there is none
        self.sums, self.tokens = torch.zeros_like(self.sums), torch.zeros_like(self.tokens)
        if len(self.history):
            means = torch.where(means.isnan(), self.history[-1], means)
        if bool(means.isnan().all()):
            return
        means = torch.where(means.isnan(), means.nanmean(), means)
        self.history = torch.cat([self.history, means.unsqueeze(0)])[-self.window :]
        self._set(self.history.sum(0))

    def _set(self, losses: Tensor) -> None:
        self.weights = torch.softmax(self.initial.log() + self.eta * self._graph_SS @ losses, 0)


def skill_graph(before: Mapping[str, float], after: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The graph A of short runs, one for each source, all from the same weights: what training on source i took off the
    loss of source j, as a share of that loss, where it took anything off.

        A[i, j] = max(0, (before_j - after_ij) / before_j)

    Args:
        before: {source j: held-out loss} before the runs.
        after: {source i: {source j: held-out loss}} after as many steps on source i alone.

    Returns:
        {source i: {source j: number}}, as `SkillIt` takes it.

    Raises:
        ConfigError: a run lacks the loss of a source, or a loss is not above 0.
    """
    start = {name: check_number(f"before: {name}", value, 0, above=True) for name, value in before.items()}
    graph = {}
    for trained, losses in after.items():
        if set(losses) != set(start):
            other = ", ".join(sorted(set(losses) ^ set(start)))
            raise ConfigError(f"after: {trained} should have the sources of `before`. Found a difference in {other}.")
        ends = {name: check_number(f"after: {trained}: {name}", value, 0) for name, value in losses.items()}
        graph[trained] = {name: max(0.0, (start[name] - end) / start[name]) for name, end in ends.items()}
    return graph


def _checked(graph: Any) -> dict[str, dict[str, float]] | None:
    """The graph's rows; None for the identity."""
    if graph is None:
        raise ConfigError(
            "online skill_it needs graph: {source: {source: number}}, how much training on the first lowers the loss "
            "of the second; the path of a JSON file with it; or identity. Found none."
        )
    if graph == "identity":
        return None
    rows = {name: numbers_by_name(f"graph: {name}", row) for name, row in numbers_by_name("graph", graph).items()}
    return {
        name: {other: check_number(f"graph: {name}: {other}", each, -1e6) for other, each in row.items()}
        for name, row in rows.items()
    }
