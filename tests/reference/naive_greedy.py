"""The slow, obvious twin of the lazy greedy: every gain at every step, in exact numbers."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor


def naive_greedy(similarities_NN: Tensor, budget: int) -> tuple[list[int], list[float]]:
    """Maximise sum_i max(0, max_{s in S} similarities[i, s]) greedily; ties go to the smaller index.

    Returns:
        Rows in the order chosen, and their gains.
    """
    count = len(similarities_NN)
    exact = [[Fraction(value) for value in row] for row in similarities_NN.double().tolist()]
    covered = [Fraction(0)] * count
    chosen: list[int] = []
    gains: list[float] = []
    for _ in range(budget):
        best, best_gain = -1, Fraction(-1)
        for candidate in range(count):
            if candidate in chosen:
                continue
            gain = sum((max(exact[i][candidate] - covered[i], Fraction(0)) for i in range(count)), Fraction(0))
            if gain > best_gain:
                best, best_gain = candidate, gain
        chosen.append(best)
        gains.append(float(best_gain))
        covered = [max(covered[i], exact[i][best]) for i in range(count)]
    return chosen, gains


def naive_distances(features_NP: Tensor, metric: str) -> Tensor:
    """Distances between rows, pair by pair: float64 [N, N]."""
    rows = features_NP.double()
    result = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            if metric == "l1":
                result[i, j] = (one - other).abs().sum()
            elif metric == "l2":
                result[i, j] = (one - other).pow(2).sum().sqrt()
            else:
                result[i, j] = 1 - (one @ other) / (one.norm() * other.norm())
    return result
