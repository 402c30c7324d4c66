"""CoLM in full dimension and without a thought for cost: what the paper (arXiv 2407.19580, algorithm 1) and its
authors' trainer do in one step, row by row. The first step uses raw features, as ours does and theirs does not."""

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
        self.step = 0
        self.fresh = True
        self.h = kept_coordinates

    def moments(self, gradients_NP: Tensor) -> tuple[Tensor, Tensor]:
        """What the histories would be if one example alone were trained: of each example its own."""
        m_NP = BETA1 * self.m + (1 - BETA1) * gradients_NP
        v_NP = BETA2 * self.v + (1 - BETA2) * gradients_NP**2
        return m_NP, v_NP

    def features(self, gradients_NP: Tensor, sources_N: Tensor) -> dict[int, tuple[list[int], Tensor]]:
        """For each source its rows, and their normalised gradients cut to the source's largest coordinates."""
        u = gradients_NP
        if not self.fresh:
            m_NP, v_NP = self.moments(gradients_NP)
            t = self.step + 1
            u = (m_NP / (1 - BETA1**t)) / ((v_NP / (1 - BETA2**t)).sqrt() + EPSILON)
        result = {}
        for source in sorted(set(sources_N.tolist())):
            rows = [row for row in range(len(u)) if sources_N[row] == source]
            kept = u[rows].mean(dim=0).abs().topk(self.h).indices
            result[source] = (rows, u[rows][:, kept])
        return result

    def choose(self, gradients_NP: Tensor, sources_N: Tensor, budget: int, small: set[int]) -> list[int]:
        """All rows of the small sources, the first ones of them if they are more than the budget; then the medoids of
        each large source. The histories become the means over these medoids of each one's own."""
        kept = [row for row in range(len(gradients_NP)) if int(sources_N[row]) in small][:budget]
        medoids: list[int] = []
        if len(kept) < budget:
            by_source = self.features(gradients_NP, sources_N)
            large = [source for source in by_source if source not in small]
            share = shares([len(by_source[source][0]) for source in large], budget - len(kept))
            for source, count in zip(large, share, strict=True):
                rows, u = by_source[source]
                medoids += [rows[i] for i in greedy_facility_location(l1(u), count)]
            m_NP, v_NP = self.moments(gradients_NP)
            self.m, self.v = m_NP[medoids].mean(dim=0), v_NP[medoids].mean(dim=0)
            self.fresh = False
        self.step += 1
        return sorted(kept + medoids)


def shares(counts: list[int], budget: int) -> list[int]:
    """In proportion, rounded down; one more each for the smallest of them until all are given out."""
    result = [budget * count // sum(counts) for count in counts]
    smallest = sorted(range(len(counts)), key=lambda i: result[i])
    for i in smallest[: budget - sum(result)]:
        result[i] += 1
    return result


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
            if there:
                total += float((distances.max() - distances[there]).max(dim=0).values.sum())
    return total
