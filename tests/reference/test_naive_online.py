"""Online methods against their equations in plain Python."""

import math

import numpy as np
import pytest
import torch
from naive_online import aioli, doge, doremi, odm, skill_it

from corebatch.sampling.online import make_online
from corebatch.seeds import seeded

NAMES = ["a", "b", "c", "d"]
EQUAL = torch.ones(4, dtype=torch.float64)


def begun(name, **options):
    method = make_online(name, {"floor": 0.0, **options})
    method.begin(NAMES, EQUAL, seed=5)
    return method


def drawn(steps, missing):
    """Losses of each step, some of them NaN."""
    numbers = np.random.default_rng(0)
    losses = numbers.uniform(0.5, 4, (steps, 4))
    losses[numbers.uniform(size=losses.shape) < missing] = math.nan
    losses[0, 1:] = math.nan
    losses[0, 0] = 2.0
    return losses


def observed(method, losses):
    found = []
    for step, row in enumerate(losses, start=1):
        method.observe(torch.from_numpy(row), torch.ones(4), step)
        found.append(method.shares.tolist())
    return found


def test_doremi():
    references = [1.0, 2.0, 0.5, 3.0]
    losses = drawn(30, 0.3)
    method = begun("doremi", reference_losses=dict(zip(NAMES, references, strict=True)), eta=0.7, smoothing=0.01)
    expected, mean = doremi(references, losses.tolist(), 0.7, 0.01)
    np.testing.assert_allclose(observed(method, losses), expected, rtol=1e-12)
    np.testing.assert_allclose(method.average, mean, rtol=1e-12)


def test_odm():
    losses = drawn(60, 0.3)
    np.testing.assert_allclose(observed(begun("odm", alpha=0.8), losses), odm(losses.tolist(), 0.8, 4), rtol=1e-12)


@pytest.mark.parametrize("targets", [None, ["b", "d"]])
def test_skill_it(targets):
    graph = np.random.default_rng(1).uniform(0, 1, (4, 4)).round(3)
    rows = {name: dict(zip(NAMES, row, strict=True)) for name, row in zip(NAMES, graph.tolist(), strict=True)}
    periods = np.random.default_rng(2).uniform(0.5, 4, (6, 4))
    method = begun("skill_it", graph=rows, eta=0.3, period=5, window=3, targets=targets)
    expected = skill_it(graph, periods, 0.3, 3, range(4) if targets is None else [1, 3])
    found = [method.shares.tolist()]
    for number, losses in enumerate(periods, start=1):
        assert method.due == 5 * number
        method.observe(torch.from_numpy(losses), torch.ones(4), 5 * number)
        found.append(method.shares.tolist())
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_skill_it_by_what_was_trained():
    """Of a period the mean over tokens; a source without any keeps its last loss."""
    method = begun("skill_it", graph="identity", losses="training", period=2, window=1, eta=1.0)
    nan = math.nan
    steps = [([1.0, 2.0, nan, nan], [1, 1, 0, 0]), ([4.0, 2.0, 3.0, nan], [3, 1, 2, 0]), *[([nan] * 4, [0] * 4)] * 2]
    for step, (losses, tokens) in enumerate(steps, start=1):
        method.observe(torch.tensor(losses), torch.tensor(tokens), step)
        if step > 1:
            means = [3.25, 2.0, 3.0, (3.25 + 2 + 3) / 3]
            expected = torch.tensor(means, dtype=torch.float64).softmax(0)
            torch.testing.assert_close(method.shares, expected)


@pytest.mark.parametrize("targets", [None, ["c"]])
def test_doge(targets):
    numbers = np.random.default_rng(3)
    batches = []
    for _ in range(12):
        sizes = numbers.integers(0, 4, 4)
        sizes[0] = max(sizes[0], 1)
        batches.append([(numbers.normal(size=(n, 5)) + 0.5, numbers.integers(1, 9, n)) for n in sizes])
    method = begun("doge", eta=0.4, most=2.0, targets=targets)
    found = []
    for sources in batches:
        method.observe_gradients(
            torch.from_numpy(np.stack([rows.sum(0) for rows, _ in sources])),
            torch.tensor([(rows**2).sum() for rows, _ in sources]),
            torch.tensor([len(rows) for rows, _ in sources]),
            torch.tensor([tokens.sum() for _, tokens in sources]),
        )
        found.append(method.shares.tolist())
    expected = doge(batches, 0.4, 2.0, range(4) if targets is None else [2])
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_doge_favors_the_source_that_helps_the_others():
    method = begun("doge", eta=0.5)
    gradients = torch.tensor([[2.0, 2.0], [1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    for _ in range(20):
        method.observe_gradients(2 * gradients, 2 * gradients.square().sum(1), torch.full((4,), 2), torch.full((4,), 2))
    shares = method.shares
    assert shares.argmax() == 0
    assert shares.argmin() == 3


@pytest.mark.parametrize("ema", [None, 0.3])
def test_aioli(ema):
    numbers = np.random.default_rng(4)
    helps = numbers.uniform(0, 0.02, (4, 4))

    def loss_of(trained):
        done = np.sum(trained, 0)
        return 3 * np.exp(-helps @ done / 3)

    options = {"eta": 2.0, "period": 30, "sweeps": 2, "sweep_steps": 3, "focus": 0.7}
    method = begun("aioli", ema=ema, **options)
    orders = [
        [torch.randperm(4, generator=seeded(5, number, sweep, "aioli")).tolist() for sweep in range(2)]
        for number in range(4)
    ]
    expected = aioli(loss_of, 4, orders, steps=110, ema=ema, **options)
    trained, evaluations = [], 0
    for step in range(1, 111):
        trained.append(method.shares.numpy())
        if step == method.due:
            method.observe(torch.from_numpy(loss_of(trained)), torch.ones(4), step)
            evaluations += 1
    np.testing.assert_allclose(trained, expected, rtol=1e-9)
    assert evaluations == 3 * 9 + 7  # of the fourth round, the beginning and six mixtures: 20 of 24 steps
    assert not np.allclose(trained[-1], trained[0])


def test_aioli_takes_no_notice_of_losses_that_it_did_not_ask_for():
    one, other = (begun("aioli", period=30, sweeps=1, sweep_steps=3) for _ in range(2))
    for step in range(1, 40):
        losses = torch.rand(4, generator=seeded(1, step), dtype=torch.float64)
        other.observe(losses, torch.ones(4), step)
        if step == one.due:
            one.observe(losses, torch.ones(4), step)
        assert torch.equal(one.shares, other.shares)
