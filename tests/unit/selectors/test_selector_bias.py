"""Bias given the pool: none for the samplers, and so for the default, whatever the rows look like."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from corebatch import select
from corebatch.selectors import make_selector
from corebatch.selectors.kernels.inclusion import inclusion_probabilities

DRAWS = 300
MOST = 0.02
UNBIASED = ("cube", "pivotal", "gram_schmidt_walk", "importance")


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clusters(rows: int) -> Tensor:
    return normal(4, 12).repeat(rows // 4, 1) + 0.02 * normal(rows, 12, seed=1)


def lone_rows(rows: int) -> Tensor:
    """Most rows point one way; every fourth has a direction of its own, which nothing balances."""
    features = normal(1, rows + 8).repeat(rows, 1) + 0.05 * normal(rows, rows + 8, seed=1)
    lone = torch.arange(0, rows, 4)
    features[lone] = 0.0
    features[lone, lone] = 3.0
    return features


def some_zero(rows: int) -> Tensor:
    features = normal(rows, 6)
    features[::3] = 0.0
    return features


def one_large(rows: int) -> Tensor:
    features = normal(rows, 6)
    features[3] *= 1e8
    return features


POOLS: dict[str, Callable[[int], Tensor]] = {
    "normal": lambda rows: normal(rows, 6),
    "clusters": clusters,
    "lone rows": lone_rows,
    "duplicates": lambda rows: normal(rows // 4, 6).repeat(4, 1),
    "all alike": lambda rows: normal(1, 6).repeat(rows, 1),
    "zeros": lambda rows: torch.zeros(rows, 6),
    "some rows of zeros": some_zero,
    "one column": lambda rows: normal(rows, 1),
    "one direction": lambda rows: normal(rows, 1) * normal(1, 9, seed=1),
    "wide": lambda rows: normal(rows, 500),
    "one sign": lambda rows: normal(rows, 6).abs() + 2.0,
    "opposite pairs": lambda rows: torch.cat([normal(rows // 2, 6), -normal(rows // 2, 6)]),
    "tiny": lambda rows: normal(rows, 6) * 1e-30,
    "huge": lambda rows: normal(rows, 6) * 1e30,
    "norms over eight decades": lambda rows: normal(rows, 6) * torch.logspace(-4, 4, rows)[:, None].double(),
    "one row 1e8 times the others": one_large,
}


def bias_share(draws: Tensor, target: Tensor) -> float:
    """bias^2 over the mean squared error, without what the mean over so many draws is off by chance."""
    off = float((draws.mean(0) - target).square().sum())
    error = float((draws - target).square().sum(1).mean())
    if error <= 1e-14 * float(target.square().sum()):  # met exactly, but for the rounding of weights to float32
        return 0.0
    return (off - (error - off) / (len(draws) - 1)) / error


def drawn(selector: str | None, features: Tensor, budget: int, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Estimates of the gradients' mean, [draws, columns], and how often each row was chosen."""
    estimates, times = [], torch.zeros(len(features))
    named = {} if selector is None else {"selector": selector}
    for seed in range(DRAWS):
        chosen = select(features, budget, seed=seed, **named)
        estimates.append((chosen.weights.double()[:, None] * gradients[chosen.indices]).mean(0))
        times[chosen.indices] += 1
    return torch.stack(estimates), times


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("rows", "budget"), [(16, 8), (16, 1), (16, 15), (64, 16)])
def test_the_default_is_unbiased_whatever_the_rows(pool: str, rows: int, budget: int) -> None:
    """In the features, and in gradients that the features know nothing of."""
    features = POOLS[pool](rows)
    unit = features / (features.norm(dim=1).max() or 1.0)
    gradients = torch.cat([unit, normal(rows, 8, seed=9) / 8], dim=1)
    estimates, times = drawn(None, features, budget, gradients)
    for part in (gradients, unit, gradients[:, unit.shape[1] :]):
        first = 0 if part is not gradients and len(part[0]) == unit.shape[1] else gradients.shape[1] - part.shape[1]
        found = estimates[:, first : first + part.shape[1]]
        assert abs(bias_share(found, part.mean(0))) <= MOST
    inclusion = inclusion_probabilities(features / (features.abs().max() or 1.0), budget, 0.1)
    error = (inclusion * (1 - inclusion) / DRAWS).sqrt()
    assert bool(((times / DRAWS - inclusion).abs() <= 4.5 * error + 1e-9).all()), "rows that are starved or preferred"


@pytest.mark.parametrize("selector", UNBIASED)
@pytest.mark.parametrize("pool", ["lone rows", "clusters", "some rows of zeros"])
def test_samplers_are_unbiased(selector: str, pool: str) -> None:
    features = POOLS[pool](16)
    gradients = normal(16, 8, seed=9)
    estimates, _ = drawn(selector, features, 8, gradients)
    assert abs(bias_share(estimates, gradients.mean(0))) <= MOST


def test_balanced_is_not() -> None:
    """What the samplers are unbiased for: swaps leave out rows whose direction nothing balances."""
    features = POOLS["lone rows"](16)
    estimates, times = drawn("balanced", features, 4, features)
    assert bias_share(estimates, features.mean(0)) > 5 * MOST
    assert int((times == 0).sum()) > 0, "rows that are never taken"


def test_a_certain_row_does_not_unbalance_the_others() -> None:
    """However large it is: it is taken anyway, and says nothing of how to choose the rest."""
    features = normal(40, 3)
    features[0] = 0.0
    spread = []
    for size in (1.0, 1e6, 1e10, 1e12):
        features[0, 0] = 1e3 * size
        chosen = [make_selector("cube").select(features, 20, torch.Generator().manual_seed(k)) for k in range(60)]
        rest = [each.indices > 0 for each in chosen]
        sums = [
            (c.weights[r].double()[:, None] * features[c.indices[r]]).sum(0) for c, r in zip(chosen, rest, strict=True)
        ]
        spread.append(float(torch.stack(sums).std(0).norm()))
    assert max(spread) < 1.5 * min(spread), spread
