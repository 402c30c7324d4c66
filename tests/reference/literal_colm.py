"""CoLM as its paper writes it, in full dimension and without a thought for cost (arXiv 2407.19580, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
TIE = 1e-6


class LiteralColm:
    """One number for each of the P coordinates of every example's gradient, Adam's histories over all of them."""

    def __init__(self, coordinates: int, kept_coordinates: int) -> None:
        self.m = torch.zeros(coordinates, dtype=torch.float64)
        self.v = torch.zeros(coordinates, dtype=torch.float64)
        self.steps = 0
        self.h = kept_coordinates

    def features(self, gradients_NP: Tensor, sources_N: Tensor) -> dict[int, tuple[list[int], Tensor]]:
        """For each source its rows, and their normalised gradients cut to the source's largest coordinates."""
        u = gradients_NP
        if self.steps:
            t = self.steps + 1
            m = (BETA1 * self.m + (1 - BETA1) * gradients_NP) / (1 - BETA1**t)
            v = (BETA2 * self.v + (1 - BETA2) * gradients_NP**2) / (1 - BETA2**t)
            u = m / (v.sqrt() + EPSILON)
        result = {}
        for source in sorted(set(sources_N.tolist())):
            rows = [row for row in range(len(u)) if sources_N[row] == source]
            kept = u[rows].mean(dim=0).abs().topk(self.h).indices
            result[source] = (rows, u[rows][:, kept])
        return result

    def choose(self, gradients_NP: Tensor, sources_N: Tensor, budget: int, small: set[int]) -> list[int]:
        """All of the small sources, then the medoids of each large one; updates the histories."""
        by_source = self.features(gradients_NP, sources_N)
        chosen = [row for source in small for row in by_source[source][0]]
        rest = budget - len(chosen)
        large = [source for source in by_source if source not in small]
        total = sum(len(by_source[source][0]) for source in large)
        exact = {source: rest * len(by_source[source][0]) / total for source in large}
        share = {source: int(exact[source]) for source in large}
        for source in sorted(large, key=lambda s: (share[s] - exact[s], s))[: rest - sum(share.values())]:
            share[source] += 1
        medoids = []
        for source in large:
            rows, u = by_source[source]
            medoids += [rows[i] for i in greedy_facility_location(l1(u), share[source])]
        mean = gradients_NP[medoids].mean(dim=0)
        self.m = BETA1 * self.m + (1 - BETA1) * mean
        self.v = BETA2 * self.v + (1 - BETA2) * mean**2
        self.steps += 1
        return sorted(chosen + medoids)


def l1(u: Tensor) -> Tensor:
    return (u[:, None] - u[None]).abs().sum(dim=-1)


def greedy_facility_location(distances: Tensor, budget: int) -> list[int]:
    """Rows that maximise sum_i max_{s in S} (C - d_is), one by one; the first of equals.

    Rows p_i z lie on a line, where exact ties are common; rounding over P coordinates would settle them by chance.
    """
    similarities = distances.max() - distances
    covered = torch.zeros(len(distances), dtype=torch.float64)
    chosen: list[int] = []
    for _ in range(budget):
        gains = [
            -1.0 if row in chosen else float((similarities[row] - covered).clamp(min=0).sum())
            for row in range(len(distances))
        ]
        chosen.append(next(row for row, gain in enumerate(gains) if gain >= max(gains) - TIE * float(distances.max())))
        covered = torch.maximum(covered, similarities[chosen[-1]])
    return chosen


def objective(by_source: dict[int, tuple[list[int], Tensor]], chosen: list[int], small: set[int]) -> float:
    """What facility location maximises, summed over the large sources."""
    total = 0.0
    for source, (rows, u) in by_source.items():
        if source not in small:
            distances = l1(u)
            there = [i for i, row in enumerate(rows) if row in set(chosen)]
            total += float((distances.max() - distances[there]).max(dim=0).values.sum())
    return total
