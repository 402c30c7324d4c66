"""Sizes and costs of a choice: pi in proportion to size / cost^p, with weights that stay M / (N pi)."""

import pytest
import torch

from corebatch import select
from corebatch.errors import ConfigError, InputError
from corebatch.selectors import SELECTORS, make_selector
from corebatch.trainer import CoresetConfig

ROWS, BUDGET, DRAWS = 24, 6, 4000
SAMPLERS = [name for name, kind in SELECTORS.items() if kind().draws]


def problem():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(ROWS, 5, generator=generator)
    return features, torch.rand(ROWS, generator=generator) * 4 + 0.5


def frequencies(selector, **given):
    features, _ = problem()
    taken, weights = torch.zeros(ROWS), torch.zeros(ROWS)
    for seed in range(DRAWS):
        chosen = selector.select(features, BUDGET, torch.Generator().manual_seed(seed), **given)
        taken[chosen.indices] += 1
        weights[chosen.indices] += chosen.weights
    return taken / DRAWS, weights / taken.clamp(min=1)


@pytest.mark.parametrize("power", [None, 0.5])
def test_inclusion_goes_by_size_over_cost(power):
    features, costs = problem()
    exponent = 0.25 if power is None else power
    wanted = features.norm(dim=1) / costs**exponent
    wanted = BUDGET * wanted / wanted.sum()
    assert wanted.max() < 1
    taken, weights = frequencies(make_selector("importance", {"cost_power": power}), costs=costs)
    assert (taken - wanted).abs().max() < 4 * (0.25 / DRAWS) ** 0.5
    torch.testing.assert_close(weights, BUDGET / (ROWS * wanted), rtol=1e-4, atol=0)


def test_inclusion_goes_by_sizes_in_place_of_norms():
    _, sizes = problem()
    taken, _ = frequencies(make_selector("cube"), sizes=sizes)
    wanted = BUDGET * sizes / sizes.sum()
    assert (taken - wanted).abs().max() < 4 * (0.25 / DRAWS) ** 0.5


@pytest.mark.parametrize("name", SAMPLERS)
def test_equal_costs_change_nothing(name):
    features, _ = problem()
    plain, priced = (select(features, BUDGET, selector=name, costs=costs) for costs in (None, torch.ones(ROWS)))
    assert torch.equal(plain.indices, priced.indices)
    torch.testing.assert_close(plain.weights, priced.weights)


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - set(SAMPLERS) - {"greats"}))
def test_others_refuse_costs(name):
    features, costs = problem()
    with pytest.raises(InputError, match=f"`{name}` draws with no inclusion probabilities. Found `costs`"):
        select(features, BUDGET, selector=name, costs=costs, losses=torch.ones(ROWS))


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        (torch.zeros(ROWS), "`costs` should be positive. Found 0.0"),
        (-torch.ones(ROWS), "`costs` should be positive. Found -1.0"),
        (torch.ones(3), "`costs` should be a floating tensor"),
        (torch.full((ROWS,), float("nan")), "`costs` should be finite"),
    ],
)
def test_wrong_costs(costs, said):
    with pytest.raises(InputError, match=said):
        select(problem()[0], BUDGET, selector="cube", costs=costs)


@pytest.mark.parametrize("power", [-0.1, 1.5, "half"])
def test_wrong_power(power):
    with pytest.raises(ConfigError, match="cost_power"):
        CoresetConfig(selector_options={"cost_power": power})
