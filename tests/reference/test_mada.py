"""MADA against its twin, and against the optimizers that it lies between."""

import mada_twin
import numpy as np
import pytest
import torch
from torch import nn

from corebatch.errors import ConfigError
from corebatch.optimizers import MADA

SCALES = np.array([1.0, 3.0, 0.2, 0.05, 2.0])
TARGET = np.array([0.5, -1.0, 2.0, 1.0, 0.0])
START = (1.0, 2.0, -1.0, 0.3, -2.0)


def loss(w):
    return float((SCALES * (w - TARGET) ** 2).sum() / 2 + 0.1 * np.cos(3 * w).sum())


def gradient(w):
    return SCALES * (w - TARGET) - 0.3 * np.sin(3 * w)


def path(made, steps, rates=None):
    """The weights and coefficients of a run on that loss."""
    weights, found = [p for group in made.param_groups for p in group["params"]], []
    for step in range(steps):
        if rates is not None:
            for group in made.param_groups:
                group["lr"] = rates[step]
        w = torch.cat([p.detach() for p in weights])
        for p, g in zip(weights, torch.tensor(gradient(w.numpy())).split([len(p) for p in weights]), strict=True):
            p.grad = g.to(p)
        made.step()
        found.append(
            (torch.cat([p.detach() for p in weights]).numpy().copy(), made.param_groups[0].get("coefficients"))
        )
    return found


def weights_of(*sizes):
    return [nn.Parameter(part.clone()) for part in torch.tensor(START, dtype=torch.float64).split(sizes)]


@pytest.mark.parametrize("begin", [(0.9, 0.95, 0.0, 0.6, 1.0, 1.0), (0.8, 0.9, 0.3, 0.5, 0.5, 0.7)])
def test_weights_and_coefficients_are_the_twins(begin):
    rates = [0.05 * (step + 1) / 5 if step < 5 else 0.05 for step in range(25)]
    beta1, beta2, beta3, rho, c, gamma = begin
    made = MADA(
        weights_of(3, 2), betas=(beta1, beta2), beta3=beta3, rho=rho, c=c, gamma=gamma, rate=0.02, beta_rate=1e-3,
        weight_decay=0.1,
    )  # fmt: skip
    twin = mada_twin.mada(loss, gradient, START, rates, begin, decay=0.1, rate=0.02, beta_rate=1e-3)
    for (found, learnt), (expected, theirs) in zip(path(made, 25, rates), twin, strict=True):
        np.testing.assert_allclose(learnt, theirs, atol=1e-6)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(theirs - np.array(begin)).min() > 1e-5  # every coefficient has moved


@pytest.mark.parametrize(
    "name, options, made",
    [
        ("adam", {"rho": 1.0}, lambda p: torch.optim.AdamW(p, lr=0.03, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)),
        ("lion", {"gamma": 0.0}, None),
    ],
)
def test_at_its_corners_it_is_the_others(name, options, made):
    if name == "lion":
        library = pytest.importorskip("pytorch_optimizer")
        made = lambda p: library.Lion(p, lr=0.03, betas=(0.95, 0.98), weight_decay=0.1)  # noqa: E731
    own = MADA(weights_of(5), lr=0.03, weight_decay=0.1, rate=0.0, beta_rate=0.0, **options)
    for (found, _), (expected, _) in zip(path(own, 20), path(made(weights_of(5)), 20), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_avgrad_divides_by_the_root_of_the_mean_of_all_second_moments():
    own = MADA(weights_of(5), lr=0.0, rho=0.0, rate=0.0, beta_rate=0.0)
    path(own, 4)
    v = sum((1 - 0.95**t) for t in range(1, 5)) / 4 * gradient(np.array(START)) ** 2 / (1 - 0.95**4)
    found = own.second_moment_of(own.param_groups[0]["params"][0])
    np.testing.assert_allclose(found.numpy(), v, rtol=1e-12)


def test_a_weight_that_never_had_a_gradient_stays_and_its_slope_is_no_nan():
    p = nn.Parameter(torch.ones(3))
    made = MADA([p], lr=0.1)
    for _ in range(5):
        p.grad = torch.tensor([1.0, 0.0, -2.0])
        made.step()
    assert p[1] == 1
    assert torch.isfinite(p).all()
    assert np.isfinite(made.param_groups[0]["coefficients"]).all()


def test_weights_without_a_gradient_in_a_step_are_left_alone():
    one, other = weights_of(3, 2)
    made = MADA([{"params": [one]}, {"params": [other]}], lr=0.1)
    for step in range(4):
        before = other.detach().clone()
        one.grad = torch.ones_like(one)
        other.grad = None if step == 2 else torch.ones_like(other)
        made.step()
        assert torch.equal(before, other) == (step == 2)
    assert made.state[other]["step"] == 3


@pytest.mark.parametrize("options", [{"rho": 1.5}, {"betas": (0.9, 0.999)}, {"beta3": -0.1}, {"rate": -1.0}])
def test_coefficients_outside_of_their_bounds(options):
    with pytest.raises(ConfigError, match="MADA's"):
        MADA(weights_of(5), **options)
