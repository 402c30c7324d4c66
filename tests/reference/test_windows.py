"""Averages over windows of steps: against their definition in plain vectors, and what they say of estimates that are
known."""

import pytest
import torch

from corebatch.bench.gradients.errors import Gram
from corebatch.bench.gradients.mean_weights import mean_weights
from corebatch.bench.gradients.series import Series, large_batches, positions
from corebatch.bench.gradients.windows import exponential_steps, paired_errors, windows
from corebatch.model.rows import Padding
from corebatch.types import ID
from models import in_micro_batches

POPULATION, LARGE, BUDGET, LONG = 24, 8, 3, 40


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_choices(series, budget, seed=0):
    """Coefficients of the plain mean of a random M of each large batch."""
    found = torch.zeros(len(series.pools_TN), series.population, dtype=torch.float64)
    for step, pool in enumerate(series.pools_TN):
        found[step, pool[torch.randperm(len(pool), generator=seeded(1000 * seed + step))[:budget]]] = 1 / budget
    return found


@pytest.fixture(scope="module")
def gradients():
    """With a mean that is not zero."""
    return torch.randn(POPULATION, LONG, generator=seeded(1), dtype=torch.float64) + 0.3


# ---- against the definition ------------------------------------------------------------------------------------------


def naive(gradients, averages, targets, steps):
    """Of averages (combinations of gradients) over so many steps each: everything in vectors, one after the other."""
    mean = gradients.mean(dim=0)
    variance = sum(float((each - mean) @ (each - mean)) for each in gradients) / (POPULATION - 1)
    errors, to_population, vectors = [], [], []
    for coefficients, target, count in zip(averages, targets, steps, strict=True):
        estimate = sum(c * g for c, g in zip(coefficients, gradients, strict=True))
        large = sum(c * g for c, g in zip(target, gradients, strict=True))
        errors.append(count * float((estimate - large) @ (estimate - large)))
        to_population.append(count * float((estimate - mean) @ (estimate - mean)))
        vectors.append((estimate, large, count))
    error = sum(errors) / len(errors)
    by_random = (1 / BUDGET - 1 / LARGE) * variance

    def rescaled(scale):
        return sum(n * float((scale * e - g) @ (scale * e - g)) for e, g, n in vectors) / len(vectors)

    scales = [number / 2000 for number in range(4001)]
    n = 1 / (error / variance + 1 / LARGE)
    return {
        "error": error / by_random,
        "error_rescaled": min(rescaled(scale) for scale in scales) / by_random,
        "error_population": sum(to_population) / len(errors) / ((1 / LARGE - 1 / POPULATION) * variance),
        "length": sum(c * float(e @ g) for e, g, c in vectors) / sum(c * float(g @ g) for _, g, c in vectors),
        "effective": n / LARGE,
    }


@pytest.mark.parametrize("length", [1, 10, 50])
def test_windows_are_their_definition(gradients, length):
    series = Series.of(POPULATION, LARGE, 120, 3)
    chosen = 0.8 * random_choices(series, BUDGET)
    found = windows(Gram.of(gradients), chosen, series.large_TP, BUDGET, LARGE)
    assert set(found) == {"1", "10", "50", "adam"}  # no window of 200
    starts = range(0, 120 - length + 1, length)
    averages, targets = (
        [sum(each[start + step] for step in range(length)) / length for start in starts]
        for each in (chosen, series.large_TP)
    )
    window = found[str(length)]
    for name, value in naive(gradients, averages, targets, [length] * len(averages)).items():
        assert getattr(window, name) == pytest.approx(value, rel=1e-4), name
    assert (window.steps, window.count) == (length, 120 // length)


def test_the_exponential_average_is_that_of_adam(gradients):
    series = Series.of(POPULATION, LARGE, 60, 3)
    chosen = random_choices(series, BUDGET)
    parameter = torch.nn.Parameter(torch.zeros(POPULATION, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=1.0, betas=(0.9, 0.999))
    averages, targets, steps = [], [], []
    for kept, values in ((averages, chosen), (targets, series.large_TP)):
        optimizer.state.clear()
        for step, value in enumerate(values):
            parameter.grad = value.clone()
            optimizer.step()
            kept.append(optimizer.state[parameter]["exp_avg"] / (1 - 0.9 ** (step + 1)))
    for step in range(60):
        weights = [0.1 * 0.9**age for age in range(step + 1)]
        steps.append(sum(weights) ** 2 / sum(weight**2 for weight in weights))
    assert exponential_steps(60).tolist() == pytest.approx(steps)
    window = windows(Gram.of(gradients), chosen, series.large_TP, BUDGET, LARGE)["adam"]
    for name, value in naive(gradients, averages, targets, steps).items():
        assert getattr(window, name) == pytest.approx(value, rel=1e-4), name
    assert window.steps == pytest.approx(19, abs=0.1)


def test_errors_of_pairs_give_the_effective_batch(gradients):
    series = Series.of(POPULATION, LARGE, 200, 3)
    gram, chosen = Gram.of(gradients), random_choices(series, BUDGET)
    errors = paired_errors(gram, chosen, series.large_TP, LARGE)
    assert len(errors) == 4
    window = windows(gram, chosen, series.large_TP, BUDGET, LARGE)["50"]
    assert 1 / (1 + sum(errors) / 4) == pytest.approx(window.effective, rel=1e-3)


def test_inner_products_are_those_of_the_gradients(gradients):
    gram, factors = Gram.of(gradients), torch.rand(POPULATION, generator=seeded(2), dtype=torch.float64)
    one, other = torch.randn(2, 5, POPULATION, generator=seeded(3), dtype=torch.float64)
    expected = ((one @ gradients) * (other @ gradients)).sum(dim=1)
    torch.testing.assert_close(gram.inner(one, other), expected)
    torch.testing.assert_close(gram.scaled(factors).gram_PP, Gram.of(gradients * factors[:, None]).gram_PP)
    expected = (gradients - gradients.mean(dim=0)).square().sum() / (POPULATION - 1)
    assert gram.variance == pytest.approx(float(expected))


def test_bias_given_the_pool_is_its_definition(gradients):
    gram, pools = Gram.of(gradients), Series.of(POPULATION, LARGE, 2, 0).pools_TN
    repeats = torch.rand(2, 6, POPULATION, generator=seeded(4), dtype=torch.float64) / POPULATION
    bias = total = 0.0
    for draws, pool in zip(repeats, pools, strict=True):
        off = draws @ gradients - gradients[pool].mean(dim=0)
        # The mean over pairs of different draws: nothing is counted against itself.
        bias += sum(float(off[i] @ off[j]) for i in range(6) for j in range(6) if i != j) / 30
        total += float(off.square().sum(dim=1).mean())
    assert gram.bias_share(repeats, large_batches(pools, POPULATION)) == pytest.approx(bias / total)


# ---- what they say of estimates that are known -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def long():
    return Series.of(POPULATION, LARGE, 4000, 7)


def test_random_choices_are_flat(gradients, long):
    found = windows(Gram.of(gradients), random_choices(long, BUDGET), long.large_TP, BUDGET, LARGE)
    for length, window in found.items():
        assert window.error == pytest.approx(1, abs=max(0.03, 4 * window.error_spread)), length
        assert window.error_spread < 0.15
        assert window.effective == pytest.approx(BUDGET / LARGE, rel=0.2)
    assert found["200"].length == pytest.approx(1, abs=0.05)


def test_bias_rises(gradients, long):
    """Weights that are off by a third, always the same ones."""
    wrong = 1 + 0.33 * torch.tensor([1.0, -1.0]).repeat(POPULATION // 2)
    found = windows(Gram.of(gradients), random_choices(long, BUDGET) * wrong, long.large_TP, BUDGET, LARGE)
    errors = [found[length].error for length in ("1", "10", "50", "200")]
    assert errors == sorted(errors)
    assert errors[-1] > 3 * errors[0]
    assert found["200"].effective < 0.5 * found["1"].effective


def test_errors_that_make_up_for_each_other_fall(gradients, long):
    """Each step takes back what the one before it was off by."""
    off = random_choices(long, BUDGET) - long.large_TP
    estimates = long.large_TP + off - torch.cat([torch.zeros(1, POPULATION, dtype=torch.float64), off[:-1]])
    found = windows(Gram.of(gradients), estimates, long.large_TP, BUDGET, LARGE)
    assert found["1"].error == pytest.approx(2, rel=0.1)
    assert found["200"].error == pytest.approx(2 / 200, rel=0.3)
    assert found["200"].effective > 0.95


def test_a_short_estimate_looks_near_and_is_short(gradients, long):
    chosen = random_choices(long, BUDGET)
    gram = Gram.of(gradients)
    right, short = (windows(gram, each, long.large_TP, BUDGET, LARGE) for each in (chosen, 0.6 * chosen))
    assert short["200"].length == pytest.approx(0.6, abs=0.03)
    assert short["1"].error < right["1"].error
    assert short["200"].error > right["200"].error
    assert short["1"].error_rescaled == pytest.approx(right["1"].error_rescaled)


def test_what_leaves_nothing_out_has_no_error(gradients, long):
    for window in windows(Gram.of(gradients), long.large_TP, long.large_TP, LARGE, LARGE).values():
        assert window.error == window.error_rescaled == 0
        assert window.effective == window.length == 1
        assert window.error_population >= 0


# ---- series and weights ----------------------------------------------------------------------------------------------


def test_pools_are_drawn_in_epochs():
    pools = Series.of(20, 6, 10, 0, warm_up=2).pools_TN
    assert pools.shape == (12, 6)
    epochs = [pools[start : start + 3] for start in range(0, 12, 3)]
    for epoch in epochs:
        assert len(epoch.flatten().unique()) == 18
        assert torch.equal(epoch, epoch.sort(dim=1).values)
    assert not torch.equal(epochs[0].flatten().sort().values, epochs[1].flatten().sort().values)
    assert torch.equal(Series.of(20, 6, 4, 0).pools_TN, pools[:4])
    assert not torch.equal(Series.of(20, 6, 4, 1).pools_TN, pools[:4])
    assert Series.of(20, 6, 10, 0, warm_up=2).large_TP.sum(dim=1).tolist() == pytest.approx([1] * 10)


def test_mean_weights_are_their_definition():
    series = Series.of(POPULATION, LARGE, 30, 0)
    sources = torch.arange(POPULATION) % 3
    estimates = random_choices(series, BUDGET) * (1 + sources)
    found = mean_weights(estimates, series.large_TP, sources, {0: "one", 1: "two", 2: "three"})
    per_example = {}
    for step, pool in enumerate(series.pools_TN):
        for example in pool.tolist():
            per_example.setdefault(example, []).append(float(estimates[step, example]) * LARGE)
    means = {example: sum(values) / len(values) for example, values in per_example.items()}
    variances = [torch.tensor(v).double().var(correction=0) / len(v) for v in per_example.values()]
    assert found.least == pytest.approx(min(means.values()))
    assert found.greatest == pytest.approx(max(means.values()))
    assert found.noise == pytest.approx(float(torch.stack(variances).mean().sqrt()))
    for number, name in enumerate(("one", "two", "three")):
        own = [value for example, values in per_example.items() if example % 3 == number for value in values]
        assert found.sources[name] == pytest.approx(sum(own) / len(own))
    assert found.sources["three"] > found.sources["one"] + 3 * found.sources_noise


def test_the_spread_of_weights_is_without_noise():
    series = Series.of(POPULATION, LARGE, 6000, 0)
    sources, wrong = torch.zeros(POPULATION).long(), 1 + 0.2 * torch.tensor([1.0, -1.0]).repeat(POPULATION // 2)
    for factors, spread in ((torch.ones(POPULATION), 0.0), (wrong, 0.2)):
        found = mean_weights(random_choices(series, BUDGET) * factors, series.large_TP, sources, {0: "all"})
        assert found.spread == pytest.approx(spread, abs=0.03)
        assert found.sources["all"] == pytest.approx(1, abs=0.03)


def test_positions_are_those_of_micro_batches():
    lengths = torch.randint(1, 40, (21,), generator=seeded(5))
    rows = [
        {"input_ids": torch.ones(n).long(), "labels": torch.ones(n).long(), ID: torch.tensor(k)}
        for k, n in enumerate(lengths.tolist())
    ]
    for size in (1, 4, 8, 30):
        made = in_micro_batches(rows, None, -(-21 // size), Padding(token=0), rows[0])
        assert positions(lengths, size) == sum(batch["input_ids"].numel() for batch in made)
