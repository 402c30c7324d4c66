"""Estimates of the gradient noise scale against populations whose noise is known."""

import math

import pytest
import torch
from scipy import stats

from corebatch.errors import InputError
from corebatch.noise import (
    Noise,
    RunningNoise,
    Sketches,
    interval_of_rows,
    interval_of_steps,
    mean_noise,
    noise_of_parts,
    noise_of_rows,
    noise_of_sums,
    within_sorted,
)
from corebatch.noise import _quantile as quantile

WIDTH, SIGNAL, TRACE = 16, 4.0, 64.0


def rows(count, generator, *, sizes=None):
    """[count, WIDTH]: summed gradients l_i (G + noise / sqrt(l_i)), as of a row whose tokens are independent."""
    mean = torch.full((WIDTH,), math.sqrt(SIGNAL / WIDTH), dtype=torch.float64)
    noise = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64) * math.sqrt(TRACE / WIDTH)
    sizes = torch.ones(count) if sizes is None else sizes
    return sizes[:, None] * mean + sizes.sqrt()[:, None] * noise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parts_of(gradients, sizes, count):
    split = torch.arange(len(gradients)).chunk(count)
    shares = [float(sizes[each].sum() / sizes.sum()) for each in split]
    parts = [gradients[each].sum(0) / sizes.sum() for each in split]
    return [float(part.square().sum()) for part in parts], shares, float(torch.stack(parts).sum(0).square().sum())


@pytest.mark.parametrize("parts", (2, 4, 16))
def test_parts_of_steps_tell_signal_and_trace(parts):
    source, found = generator(), []
    for _ in range(2000):
        gradients = rows(16, source)
        found.append(noise_of_parts(*parts_of(gradients, torch.ones(16), parts), rows=16))
    noise = mean_noise(found)
    low, high = interval_of_steps(found)
    assert noise.signal == pytest.approx(SIGNAL, rel=0.06)
    assert noise.trace == pytest.approx(TRACE, rel=0.06)
    assert low < TRACE / SIGNAL < high
    assert noise.scale == pytest.approx(TRACE / SIGNAL, rel=0.1)


def test_parts_of_unequal_shares_tell_the_noise_of_a_mean_over_tokens():
    source = generator(1)
    sizes = torch.tensor([1.0, 2, 3, 4, 5, 6, 9, 10], dtype=torch.float64)
    noise = mean_noise([noise_of_parts(*parts_of(rows(8, source, sizes=sizes), sizes, 4), rows=8) for _ in range(4000)])
    assert noise.signal == pytest.approx(SIGNAL, rel=0.06)
    # Var(sum_i sqrt(l_i) noise_i / sum_i l_i) = trace / sum_i l_i, of eight rows.
    assert noise.trace == pytest.approx(8 * TRACE / float(sizes.sum()), rel=0.06)


def sorted_parts(gradients, sizes, lengths, count):
    """[count, WIDTH] and shares."""
    order = lengths.argsort().chunk(count)
    return (torch.stack([each[own].sum(0) for own in order]) / sizes.sum() for each in (gradients, sizes))


@pytest.mark.parametrize("parts", (4, 8))
def test_parts_that_are_sorted_by_length_tell_it_by_their_neighbors(parts):
    source, found, without = generator(6), [], []
    turn = torch.zeros(2, WIDTH, dtype=torch.float64)
    turn[0, :2], turn[1, 2:] = torch.tensor([2.0, -2.0]), 1.0
    for _ in range(2000):
        lengths = torch.rand(32, generator=source, dtype=torch.float64)
        means = (lengths[:, None] - 0.5) * turn[0] + (lengths[:, None].square() - 1 / 3) * turn[1]
        gradients = rows(32, source) + means
        cut, shares = sorted_parts(gradients, torch.ones(32, dtype=torch.float64), lengths, parts)
        squares, squared = float(cut.square().sum()), float(cut.sum(0).square().sum())
        left_out = float(within_sorted(cut @ cut.T, shares))
        found.append(noise_of_sums(squares - left_out, 0.0, squared, 32))
        without.append(noise_of_sums(squares, float(shares.square().sum()), squared, 32))
    assert mean_noise(found).signal == pytest.approx(SIGNAL, rel=0.06)
    assert mean_noise(without).signal < (0.9 if parts == 4 else 0.96) * SIGNAL


def test_sketches_keep_inner_products():
    source = generator(7)
    shapes = ((96, 40), (7, 300), (50,), (4, 30, 20))
    gradients = [[torch.randn(shape, generator=source) for shape in shapes] for _ in range(2)]
    one, other = gradients[0], [a + 0.5 * b for a, b in zip(*gradients, strict=True)]
    sketches = Sketches(one)
    exact = sum(float((a * b).sum()) for a, b in zip(one, other, strict=True))
    found = sum(float(sketches.of(a) @ sketches.of(b)) for a, b in zip(one, other, strict=True))
    assert found == pytest.approx(exact, rel=0.1)
    sparse = torch.sparse_coo_tensor([[5, 2, 5]], torch.ones(3, 40), (96, 40), check_invariants=True)
    assert torch.allclose(sketches.of(sparse), sketches.of(sparse.to_dense()))
    assert sketches.of(one[0].bfloat16()).dtype == torch.float32


def test_rows_of_equal_sizes_give_the_u_statistic():
    gradients = rows(12, generator(2))
    gram = gradients @ gradients.T
    pairs = [gram[i, k] for i in range(12) for k in range(12) if i != k]
    noise = noise_of_rows(gram)
    assert noise.signal == pytest.approx(float(sum(pairs)) / (12 * 11))
    assert noise.trace == pytest.approx(float(gradients.var(dim=0, correction=1).sum()))
    squared = float(gradients.mean(0).square().sum())
    by_parts = noise_of_parts((gradients / 12).square().sum(1).tolist(), [1 / 12] * 12, squared, 12)
    assert by_parts.signal == pytest.approx(noise.signal)
    assert by_parts.trace == pytest.approx(noise.trace)


def test_rows_of_unequal_sizes_give_the_variance_of_a_ratio():
    source, batch = generator(3), 64
    sizes = torch.tensor([1.0, 2, 4, 9], dtype=torch.float64)
    # Long rows have another mean: then only the residuals g_i - l_i G have the ratio's variance.
    tilt = torch.zeros(WIDTH, dtype=torch.float64)
    tilt[0] = 3.0

    def drawn(count):
        own = sizes[torch.randint(4, (count,), generator=source)]
        return rows(count, source, sizes=own) + own.square()[:, None] * tilt / 9, own

    gradients, own = drawn(4000)
    noise = noise_of_rows(gradients @ gradients.T, own)
    means = torch.stack([g.sum(0) / s.sum() for g, s in (drawn(batch) for _ in range(4000))])
    assert noise.trace / batch == pytest.approx(float(means.var(dim=0).sum()), rel=0.08)
    assert noise.signal == pytest.approx(float(means.mean(0).square().sum()), rel=0.03)


def test_few_rows_of_unequal_sizes_are_right_in_the_mean():
    """A signal that is far smaller than the trace of a handful of rows, of which some are much longer."""
    source, count = generator(8), 4000
    sizes = torch.tensor([1.0, 2, 4, 8], dtype=torch.float64)[torch.randint(4, (count, 16), generator=source)]
    noise = torch.randn(count, 16, WIDTH, generator=source, dtype=torch.float64) * math.sqrt(TRACE / WIDTH)
    gradients = sizes[..., None] * (0.1 + noise)  # a row's tokens have one noise
    found = [noise_of_rows(own @ own.T, size) for own, size in zip(gradients, sizes, strict=True)]
    signal = torch.tensor([each.signal for each in found])
    assert abs(float(signal.mean()) - 0.01 * WIDTH) < 4 * float(signal.std()) / math.sqrt(count)
    trace = TRACE * float(sizes.square().mean() / sizes.mean().square())
    assert sum(each.trace for each in found) / count == pytest.approx(trace, rel=0.05)


def test_the_interval_of_rows_holds_the_truth_as_often_as_it_says():
    source, held, finite = generator(4), 0, 0
    for seed in range(200):
        gradients = rows(64, source)
        low, high = interval_of_rows(gradients @ gradients.T, seed=seed)
        held += low <= TRACE / SIGNAL <= high
        finite += math.isfinite(high)
    assert held >= 180
    assert finite >= 180


def test_the_interval_is_infinite_where_no_signal_shows():
    source, held = generator(5), 0
    for seed in range(100):
        gradients = torch.randn(32, WIDTH, generator=source, dtype=torch.float64)
        low, high = interval_of_rows(gradients @ gradients.T, seed=seed)
        held += high == math.inf
        assert low > 0
    assert held >= 90


def test_students_points():
    for freedom in (3, 4, 7, 31, 200):
        assert quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=0.03 if freedom < 4 else 0.01)


def test_a_scale_without_signal_is_infinite():
    assert Noise(signal=-1.0, trace=5.0, rows=8).scale == math.inf
    assert Noise(signal=2.0, trace=5.0, rows=8).scale == 2.5
    assert Noise(signal=2.0, trace=-5.0, rows=8).scale == 0.0


def test_averages_over_a_run_are_of_signal_and_trace_apart():
    running = RunningNoise(keep=0.5)
    assert running.noise is None
    assert running.scale is None
    running.update(Noise(signal=1.0, trace=10.0, rows=8))
    assert running.scale == 10.0
    running.update(Noise(signal=-0.5, trace=4.0, rows=16))
    assert running.noise.signal == pytest.approx((0.25 * 1 - 0.5 * 0.5) / 0.75)
    assert running.noise.trace == pytest.approx((0.25 * 10 + 0.5 * 4) / 0.75)
    again = RunningNoise(keep=0.5)
    again.load_state_dict(running.state_dict())
    for each in (running, again):
        each.update(Noise(signal=3.0, trace=1.0, rows=8))
    assert again.noise == running.noise
    again.load_state_dict({})
    assert again.noise is None


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: noise_of_parts([1.0], [1.0], 1.0, 8), "two parts"),
        (lambda: noise_of_parts([1.0, 1.0], [1.0, 0.0], 1.0, 8), "two parts"),
        (lambda: noise_of_parts([1.0, 1.0], [0.5, 0.5], 1.0, 1), "two rows"),
        (lambda: noise_of_parts([1.0, 1.0], [0.5], 1.0, 8), "2 parts, 1 shares"),
        (lambda: noise_of_parts([1.0, 1.0], [0.5, 0.6], 1.0, 8), "sum to 1"),
        (lambda: noise_of_parts([1.0, 1.0, 0.0], [0.8, 0.5, -0.3], 1.0, 8), "at least 0"),
        (lambda: noise_of_parts([1.0, math.nan], [0.5, 0.5], 1.0, 8), "finite"),
        (lambda: noise_of_rows(torch.ones(2, 3)), r"\[2, 3\]"),
        (lambda: noise_of_rows(torch.ones(1, 1)), "at least 2"),
        (lambda: noise_of_rows(torch.full((2, 2), math.inf)), "infinite"),
        (lambda: noise_of_rows(torch.eye(2), torch.ones(3)), "one a row"),
        (lambda: noise_of_rows(torch.eye(2), torch.tensor([1.0, -1.0])), "-1"),
        (lambda: noise_of_rows(torch.eye(2), torch.zeros(2)), "two above"),
        (lambda: noise_of_rows(torch.eye(3), torch.tensor([0.0, 2.0, 0.0])), "two above"),
        (lambda: interval_of_rows(torch.eye(7)), "8 rows"),
        (lambda: interval_of_steps([Noise(signal=1.0, trace=1.0, rows=4)] * 3), "4 estimates"),
        (lambda: mean_noise([]), "Found none"),
        (lambda: RunningNoise(keep=1.0), "keep"),
    ],
)
def test_what_cannot_be_estimated_is_an_error(call, says):
    with pytest.raises(InputError, match=says):
        call()
