"""Values over steps made ready for drawing: gaps as NaN, few enough points, light smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def values(found: Sequence[float | None]) -> Floats:
    """An array with NaN for what is unknown."""
    return np.array([np.nan if x is None else x for x in found], dtype=np.float64)


def bins(length: int, most: int) -> list[slice]:
    """At most `most` runs of neighbours, equally long but for one."""
    edges = np.linspace(0, length, min(length, most) + 1).round().astype(int)
    return [slice(a, b) for a, b in pairwise(edges.tolist())]


def thin(array: Floats, parts: Sequence[slice]) -> Floats:
    """The mean of each part over what is known; NaN where nothing is."""
    return np.array([_mean(array[part]) for part in parts])


def window(length: int) -> int:
    """How many neighbours are averaged: odd, about a twentieth of the curve; 1 for short curves."""
    return 1 if length < 20 else 2 * max(1, length // 40) + 1


def smooth(array: Floats, width: int) -> Floats:
    """A centred moving mean over what is known; shorter at both ends, so that nothing lags."""
    known = np.isfinite(array)
    ones = np.ones(width)
    total = np.convolve(np.where(known, array, 0.0), ones, mode="full")
    weight = np.convolve(known.astype(np.float64), ones, mode="full")
    half = width // 2
    total, weight = (x[half : half + len(array)] for x in (total, weight))
    mean = np.divide(total, weight, out=np.full(len(array), np.nan), where=weight > 0.5)
    return np.where(known, mean, np.nan)


def limits(raw: Sequence[Floats], line: Sequence[Floats]) -> tuple[float, float] | None:
    """An axis that holds every smoothed line and all but the most extreme raw points."""
    found = [x[np.isfinite(x)] for x in (*raw, *line)]
    known_raw, known_line = np.concatenate(found[: len(raw)]), np.concatenate(found[len(raw) :])
    if not len(known_raw):
        return None
    ends = np.quantile(known_raw, [0.01, 0.99]).tolist() + known_line.tolist()
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _mean(part: Floats) -> float:
    known = part[np.isfinite(part)]
    return float(known.mean()) if len(known) else float("nan")
