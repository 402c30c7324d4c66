"""Time factors of ways to come to a step's rows: against draws, against what is known, and their intervals."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from corebatch.bench.advise.finding import Finding
from corebatch.bench.advise.worth import Arrival, chosen, gain, plain, residuals, times_the_steps, worth
from corebatch.errors import InputError
from corebatch.noise import noise_of_rows
from corebatch.seeds import seeded

ROWS, COLUMNS = 96, 24


def measured(signal: float = 0.5, seed: int = 0) -> Any:
    """Rows of gradients with a common part, of which a quarter are four times as long as the others, and sizes."""
    generator = seeded(seed, "test")
    lengths = torch.ones(ROWS, dtype=torch.float64)
    lengths[: ROWS // 4] = 4
    noise = torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64)
    gradients = lengths[:, None] * noise + signal
    sizes = 0.5 + torch.rand(ROWS, generator=generator, dtype=torch.float64)
    sizes, gram_PP = sizes / sizes.mean(), gradients @ gradients.T
    return SimpleNamespace(gram_PP=gram_PP, metrics=(gram_PP,), sizes=sizes, gradients=gradients, lengths=lengths)


def squared_errors(rows: Any, rates: Tensor, batch: int, draws: int) -> float:
    """Mean |step's gradient - what it claims|^2 of rows that are drawn by rates, with weights 1 / rate: by drawing."""
    picks = torch.multinomial(rates / rates.sum(), draws * batch, replacement=True, generator=seeded(1, "draws"))
    weights = (1 / rates)[picks].view(draws, batch)
    sums = (weights[:, :, None] * rows.gradients[picks].view(draws, batch, -1)).sum(dim=1)
    means = sums / (weights * rows.sizes[picks].view(draws, batch)).sum(dim=1, keepdim=True)
    claimed = rows.gradients.sum(dim=0) / rows.sizes.sum()
    return float((means - claimed).square().sum(dim=1).mean())


def test_errors_of_drawn_rows_are_those_of_draws() -> None:
    rows, rates = measured(), torch.ones(ROWS, dtype=torch.float64)
    rates[: ROWS // 4] = 4
    rates = rates / rates.mean()
    way = Arrival(cost=1.0, rates=rates)
    found = worth(way, plain(1.0, ROWS), rows, 48)
    seen = squared_errors(rows, rates, 48, 2000) / squared_errors(rows, torch.ones_like(rates), 48, 2000)
    assert found.error_before == pytest.approx(1)
    assert found.error == pytest.approx(seen, rel=0.05)
    assert found.error == pytest.approx(0.645, abs=0.05), "long rows are drawn as much more often as they are longer"


def test_errors_of_chosen_rows_are_those_that_were_seen() -> None:
    """M of N at random: the error of the choice and that of the pool are together that of M rows."""
    rows, generator, steps, large, budget = measured(signal=0.0), seeded(2, "test"), 4000, 24, 8
    off = torch.zeros(steps, ROWS, dtype=torch.float64)
    for step in range(steps):
        order = torch.randperm(ROWS, generator=generator)
        off[step, order[:budget]] += 1 / budget
        off[step, order[:large]] -= 1 / large
    way = chosen(1.0, off, budget, large / budget, rows.metrics)
    found = worth(way, plain(1.0, ROWS), rows, budget)
    assert found.error == pytest.approx(1, abs=0.06)
    assert found.factor == pytest.approx(1, abs=0.06)
    assert 0 < way.spread < 0.1


def test_errors_of_chosen_rows_are_told_by_some_of_those_that_were_drawn_of() -> None:
    """A third of the rows have gradients: the same error on average over which ones."""
    rows, generator, steps, large, budget = measured(signal=0.5), seeded(2, "test"), 1000, 24, 8
    off = torch.zeros(steps, ROWS, dtype=torch.float64)
    for step in range(steps):
        order = torch.randperm(ROWS, generator=generator)
        off[step, order[:budget]] += 1 / budget
        off[step, order[:large]] -= 1 / large
    second = chosen(1.0, off, budget, 3.0, rows.metrics).chosen_PP
    assert second is not None
    whole, found = float((second * rows.gram_PP).sum()), []
    for _ in range(200):
        some = torch.randperm(ROWS, generator=generator)
        first, gram_PP = some[: ROWS // 3], rows.gram_PP[some[: ROWS // 3]][:, some[: ROWS // 3]]
        part = chosen(1.0, off[:, some], budget, 3.0, [gram_PP])
        assert part.chosen_PP is not None
        assert part.drawn_of == ROWS
        same = float(part.chosen_PP.diagonal() @ gram_PP.diagonal())
        found.append(3 * same + 9 * (float((part.chosen_PP * gram_PP).sum()) - same))
        torch.testing.assert_close(part.chosen_PP, second[first][:, first])
    assert torch.tensor(found).mean() == pytest.approx(whole, rel=0.1)


def test_a_batch_above_the_scale_gains_nothing_and_one_far_below_as_the_errors_say() -> None:
    rates = torch.ones(ROWS, dtype=torch.float64)
    rates[: ROWS // 4] = 4
    way, rows = Arrival(cost=1.0, rates=rates / rates.mean()), measured(signal=20.0)
    scale = noise_of_rows(rows.gram_PP, rows.sizes).scale
    found = worth(way, plain(1.0, ROWS), rows, 64)
    assert found.scale == pytest.approx(scale)
    assert scale < 1
    assert found.factor == pytest.approx(1, abs=0.02)
    assert f"the batch of 64 over the noise scale {64 / scale:.2g} (of {scale:.3g})" in found.why(64)
    rows = measured(signal=0.0)
    found = worth(way, plain(1.0, ROWS), rows, 1)
    assert found.factor == pytest.approx(1 / (2 - found.error), rel=0.02)
    assert found.low < found.factor < 0.75 / (1 - found.error / 4) < found.high < 1, "at half of the rate as well"
    dear = worth(Arrival(cost=3.0, rates=way.rates), plain(1.0, ROWS), rows, 1)
    assert dear.factor == pytest.approx(3 * found.factor)
    back = worth(plain(1.0, ROWS), way, rows, 1)
    assert back.factor == pytest.approx(1 / found.error, rel=0.02), "at a rate that is made smaller"


def test_steps_are_those_of_the_quadratic_at_the_rate() -> None:
    """Progress of a step of rate e: e - e^2 (1 + noise) / 2, with the noise by which the best rate before is 1."""
    for rate in (0.25, 0.5, 1.0):
        for q in (0.0, 0.5, 1.0, 1.9, 3.0, 8.0):
            taken = min(rate, 1 / q) if q else rate
            progress = taken - taken**2 * q / 2
            assert times_the_steps(q, rate) == pytest.approx((rate - rate**2 / 2) / progress)


def test_intervals_hold_what_many_rows_say() -> None:
    """The end that the rate does not set: below of a way with smaller errors, above of one with larger ones."""
    rates = torch.ones(ROWS, dtype=torch.float64)
    rates[: ROWS // 4] = 4
    way, other = Arrival(cost=1.0, rates=rates / rates.mean()), plain(1.0, ROWS)
    better = [worth(way, other, measured(seed=seed), 4) for seed in range(20)]
    worse = [worth(other, way, measured(seed=seed), 4) for seed in range(20)]
    middles = [math.exp(sum(math.log(one.factor) for one in found) / len(found)) for found in (better, worse)]
    assert sum(one.low < middles[0] for one in better) >= 18
    assert sum(one.high > middles[1] for one in worse) >= 18
    assert max(one.factor / one.low for one in better) < 1.3
    assert max(one.high / one.factor for one in worse) < 1.6


def test_an_interval_holds_what_the_gradients_themselves_say() -> None:
    rates = torch.ones(ROWS, dtype=torch.float64)
    rates[: ROWS // 4] = 4
    way, rows, loud = Arrival(cost=1.0, rates=rates / rates.mean()), measured(signal=0.0), measured(signal=20.0)
    one, other = (worth(way, plain(1.0, ROWS), each, 8) for each in (rows, loud))
    rows.metrics = (rows.gram_PP, loud.gram_PP)
    both = worth(way, plain(1.0, ROWS), rows, 8)
    assert (both.factor, both.error, both.scale) == (one.factor, one.error, one.scale)
    assert both.low == one.low < one.high < both.high
    assert both.high == pytest.approx(other.high, rel=0.05), "nothing is won without noise"
    assert both.raw_scale < 1 < both.scale
    assert "by the gradients themselves)" in both.why(8)


def test_gradients_that_are_all_alike_have_no_worth() -> None:
    gram_PP = torch.ones(8, 8, dtype=torch.float64)
    rows = SimpleNamespace(gram_PP=gram_PP, metrics=(gram_PP,), sizes=torch.ones(8, dtype=torch.float64))
    assert residuals(rows.gram_PP, rows.sizes).abs().max() < 1e-12
    with pytest.raises(InputError, match="of all rows are alike"):
        worth(plain(1.0, 8), plain(1.0, 8), rows, 4)  # type: ignore[arg-type]


def test_the_best_lever_is_recommended_and_none_that_may_lose() -> None:
    def finding(lever: str, factor: float, high: float, other: float = 0.0) -> Finding:
        return Finding(lever=lever, arm={"x": 1}, factor=factor, low=0.1, high=high, numbers={"other": other})

    sure, better, unsure = finding("sure", 0.8, 0.9), finding("better", 0.7, 0.8), finding("unsure", 0.3, 1.1)
    halved = finding("halved", 0.2, 0.3, other=1.0)
    told = Finding(lever="told")
    found = gain([told, sure, better, unsure, halved], "other")
    assert [one.lever for one in found if one.recommended] == ["better"]
    assert not any(one.recommended for one in gain([unsure]))
