"""Binning and smoothing of curves."""

from __future__ import annotations

import numpy as np
import pytest

from corebatch.report import series


@pytest.mark.parametrize("length, most", [(1, 5), (5, 5), (7, 3), (1000, 40)])
def test_bins_cover_everything_once(length: int, most: int) -> None:
    parts = series.bins(length, most)
    assert len(parts) == min(length, most)
    assert [i for part in parts for i in range(length)[part]] == list(range(length))
    assert all(part.stop > part.start for part in parts)


def test_smoothing_keeps_constants_lines_and_gaps() -> None:
    line = np.arange(30.0)
    assert np.allclose(series.smooth(line, 5)[2:-2], line[2:-2])
    assert np.allclose(series.smooth(np.full(30, 2.5), 7), 2.5)
    gap = line.copy()
    gap[10] = np.nan
    smoothed = series.smooth(gap, 3)
    assert np.isnan(smoothed[10])
    assert smoothed[9] == pytest.approx(8.5)
    assert np.array_equal(series.smooth(line, 1), line)


def test_thinning_means_over_what_is_known() -> None:
    array = series.values([1.0, None, 3.0, None])
    assert np.array_equal(series.thin(array, series.bins(4, 2)), [1.0, 3.0])
    assert np.isnan(series.thin(array, [slice(3, 4)])).all()


def test_limits_ignore_a_rare_spike_but_hold_the_line() -> None:
    raw = np.ones(300)
    raw[0] = 1000.0
    ends = series.limits([raw], [np.linspace(1, 2, 300)])
    assert ends is not None
    assert ends[0] < 1 < 2 < ends[1] < 10
    assert series.limits([np.full(3, np.nan)], [np.full(3, np.nan)]) is None
