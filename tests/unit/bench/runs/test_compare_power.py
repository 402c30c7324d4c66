"""How many seeds a comparison needs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from corebatch.bench.runs.power import (
    detectable,
    interval_of_sd,
    of_pilots,
    power,
    power_sheet,
    seeds_for,
    spread_of,
)


def test_power_is_that_of_tables() -> None:
    """Cohen's tables, two-sided 5 %: an effect of one standard deviation needs 10 pairs, of a half 34."""
    assert power(1.0, 1.0, 10, 0.05) == pytest.approx(0.803, abs=1e-3)
    assert [seeds_for(effect, 1.0, 0.05) for effect in (1.0, 0.5)] == [10, 34]
    assert seeds_for(1e-4, 1.0, 0.05) is None
    assert seeds_for(0.01, 0.0, 0.05) == 2


@pytest.mark.parametrize("seeds, alpha", [(2, 0.05), (8, 0.05), (8, 0.01)])
def test_the_smallest_effect_is_found_four_times_in_five(seeds: int, alpha: float) -> None:
    effect = detectable(0.3, seeds, alpha)
    assert power(effect, 0.3, seeds, alpha) == pytest.approx(0.8, abs=1e-3)
    draws = np.random.default_rng(0).normal(effect, 0.3, (4000, seeds))
    assert np.mean(ttest_1samp(draws, 0.0, axis=1).pvalue < alpha) == pytest.approx(0.8, abs=0.03)


def test_two_seeds_leave_a_spread_open_by_a_factor_of_seventy() -> None:
    low, high = interval_of_sd(1.0, 1)
    assert low == pytest.approx(0.446, abs=1e-3)
    assert high == pytest.approx(31.9, abs=0.1)


def test_the_spread_is_of_pairs() -> None:
    """What a seed does to both arms is in no difference."""
    ours = {1: 3.0, 2: 4.0, 3: 5.0}
    assert spread_of(ours, [{1: 2.0, 2: 3.0, 3: 4.0}]) == (0.0, 2)
    sd, freedom = spread_of(ours, [{1: 2.0, 2: 3.1}, {1: 2.0}]) or (0.0, 0)
    assert sd == pytest.approx(0.1 / math.sqrt(2))
    assert freedom == 1, "one seed in common tells nothing"
    assert spread_of(ours, [{1: 2.0}]) is None


def test_the_part_of_held_out_rows_is_told_from_trainings() -> None:
    """Made differences: a seed's own of variance 1, and of each of 8 parts of variance 8, so 1 in the mean."""
    generator, share = np.random.default_rng(1), []
    for _ in range(40):
        lines, common = [], generator.normal(0, 5, 8)  # what parts add for every seed is in no test
        for seed in range(30):
            parts = 2.0 + generator.normal(0, 1) + common + generator.normal(0, math.sqrt(8), 8)
            for arm, values in (("ours", np.zeros(8)), ("theirs", parts)):
                losses = [dict.fromkeys(("token", "example", "source"), float(value)) for value in values]
                final = dict.fromkeys(("token", "example", "source"), float(values.mean()))
                lines.append({"arm": arm, "seed": seed, "final": final, "parts": losses})
        found = of_pilots(lines, "ours", ["theirs"])["token"]
        assert found.freedom == 29
        assert found.rows is not None
        share.append(found.rows * found.sd**2)
    assert np.mean(share) == pytest.approx(1.0, abs=0.1)


def test_the_table_says_how_little_two_seeds_tell() -> None:
    told = {
        "sd": [0.01, 0.004, 0.3],
        "freedom": 1,
        "rows": 0.25,
        "needed": [8, 3, None],
        "detectable": [0.02, 0.01, 0.7],
    }
    found = {"of": "pilots", "baselines": 2, "alpha": 0.025, "effect": 0.01, "seeds": 5, "means": {"token": told}}
    sheet = power_sheet(found)
    assert sheet is not None
    assert sheet.rows == (
        ("token mean", "0.0100 (0.0040 to 0.3000)", "8 (3 to over 1,000)", "0.0200 (0.0100 to 0.7000)", "25.0 %"),
    )
    assert "1 degree of freedom: two seeds tell the order of magnitude and little more" in sheet.caption
    assert power_sheet({}) is None
