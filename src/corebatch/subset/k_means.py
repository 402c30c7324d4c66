"""Lloyd's k-means with the seeding of k-means++ (Arthur, Vassilvitskii 2007).

Shape suffixes: N points, P columns, K centers.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 300


def k_means(points_NP: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Centers of so many clusters.

    Args:
        points_NP: float64, at least `count` of them.
        count: K. A cluster that becomes empty keeps its center.

    Returns:
        float64 [K, P].
    """
    centers_KP = _seeds(points_NP, count, generator)
    nearest_N = torch.full((len(points_NP),), -1)
    for _ in range(_ROUNDS):
        before_N, nearest_N = nearest_N, _nearest(points_NP, centers_KP)
        if torch.equal(nearest_N, before_N):
            break
        members_K = torch.bincount(nearest_N, minlength=count)
        sums_KP = torch.zeros_like(centers_KP).index_add_(0, nearest_N, points_NP)
        centers_KP = torch.where(members_K[:, None] > 0, sums_KP / members_K.clamp(min=1)[:, None], centers_KP)
    return centers_KP


def _seeds(points_NP: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Points, each drawn with a chance in proportion to its squared distance from those before it."""
    chance_N = points_NP.new_ones(len(points_NP))
    seeds: list[int] = []
    distance_N = points_NP.new_full((len(points_NP),), torch.inf)
    for _ in range(count):
        seeds.append(int(torch.multinomial(chance_N, 1, generator=generator)))
        distance_N = torch.minimum(distance_N, (points_NP - points_NP[seeds[-1]]).square().sum(dim=1))
        # All points are centers already, where no distance is left: any point will do.
        chance_N = distance_N if bool(distance_N.any()) else torch.ones_like(distance_N)
    return points_NP[seeds]


def _nearest(points_NP: Tensor, centers_KP: Tensor) -> Tensor:
    """The nearest center of each point; ties go to the smaller number."""
    return torch.cat(
        [(centers_KP.square().sum(dim=1) - 2.0 * part @ centers_KP.T).argmin(dim=1) for part in points_NP.split(4096)]
    )
