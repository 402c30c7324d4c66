"""Subset methods as their papers have them, one row at a time."""

from __future__ import annotations

import numpy as np
import torch


def ccs(scores: list[float], keep: int, hardest: int, strata: int, generator: torch.Generator) -> list[int]:
    """CCS, algorithm 1: without the hardest, from each interval of scores what the budget of equals allows."""
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[hardest:]
    lowest, top = min(scores[row] for row in order), max(scores[row] for row in order) * 1.0001
    width = (top - lowest) / strata
    pools = []
    for k in range(strata):
        begin, end = lowest + k * width, lowest + (k + 1) * width
        pools.append([row for row in order if begin <= scores[row] < end])
    budgets, left = {}, keep
    smallest_first = sorted(range(strata), key=lambda k: (len(pools[k]), k))
    for done, k in enumerate(smallest_first):
        budgets[k] = min(len(pools[k]), left // (strata - done))
        left -= budgets[k]
    kept: list[int] = []
    for k in range(strata):
        shuffled = torch.randperm(len(pools[k]), generator=generator).tolist()
        kept += [pools[k][place] for place in shuffled[: budgets[k]]]
    return sorted(kept)


def covered(distances: np.ndarray, chosen: list[int]) -> float:
    """sum_i max_{s in chosen} (C - d(i, s))."""
    return float((distances.max() - distances[:, chosen].min(axis=1)).sum())


def facility_location(distances: np.ndarray, keep: int) -> list[int]:
    """The plain greedy."""
    chosen: list[int] = []
    for _ in range(keep):
        gains = [covered(distances, [*chosen, row]) if row not in chosen else -1.0 for row in range(len(distances))]
        chosen.append(int(np.argmax(gains)))
    return sorted(chosen)


def squared_error_of_sum(features: np.ndarray, rows: list[int], weights: np.ndarray) -> float:
    """|| mean over rows of w_i f_i - mean of all f_i ||^2."""
    return float(
        ((weights[:, None] * features[rows]).mean(axis=0) - features.mean(axis=0))
        @ ((weights[:, None] * features[rows]).mean(axis=0) - features.mean(axis=0))
    )
