"""What padding costs: positions counted as a loader pads them, and times told from micro-batches that are timed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corebatch.bench.advise import padding, shapes
from corebatch.bench.advise.layouts import Layouts, factor_of
from corebatch.bench.advise.padding import (
    BY_LENGTH,
    CONFIGURED,
    PaddingArm,
    arms_of,
    laid_out,
    measure,
)
from corebatch.bench.advise.shapes import Timed, nonnegative
from corebatch.mixture import row_lengths
from corebatch.trainer import CoresetConfig
from probes import tiny_probe


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which a micro-batch takes a millisecond and a microsecond a position."""

    def train_once(probe: Any, batch: Any) -> float:
        return 1e-3 + 1e-6 * float(batch["labels"].numel())

    monkeypatch.setattr(shapes, "train_once", train_once)


def test_coefficients_are_found_and_never_negative() -> None:
    dims = [(2, 10), (4, 30), (8, 50), (8, 100), (3, 200)]
    seconds = [0.5 + 0.1 * b * w + 0.01 * b * w * w for b, w in dims]
    assert Timed(dims, seconds).coefficients() == pytest.approx([0.5, 0.1, 0.01])
    assert Timed(dims, seconds).predict([(5, 60)], without=2) == pytest.approx([0.5 + 0.1 * 300 + 0.01 * 18000])
    falling = nonnegative(np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]]), np.array([3.0, 2.0, 1.0]))
    assert falling == pytest.approx([2.0, 0.0])


def test_positions_are_those_of_the_loaders_micro_batches(tmp_path: Path) -> None:
    probe = tiny_probe(tmp_path)
    lengths = row_lengths(probe.mixture.dataset)
    plain = laid_out(PaddingArm(keys={}, coreset=CoresetConfig(pool_factor=1), rows=4), probe, lengths)
    for step, dims in zip(plain.pieces, plain.dims, strict=True):
        assert [len(piece) for piece in step] == [4, 4]
        assert dims == [(4, max(lengths[row] for row in piece)) for piece in step]
    cells = sum(b * w for step in plain.dims for b, w in step)
    tokens = sum(int(lengths[row]) for step in plain.pieces for piece in step for row in piece)
    assert plain.a_token == pytest.approx(cells / tokens)
    assert plain.tokens.sum() == tokens


def test_findings_tell_what_a_cut_saves_and_recommend_the_fastest(tmp_path: Path) -> None:
    probe = tiny_probe(tmp_path)
    found = {finding.lever: finding for finding in measure(probe)}
    told, cut, grouped = found["padding"], found["cut by positions"], found[padding.GROUPED]
    positions = told.numbers["positions_a_token"]
    tokens = 8 * float(row_lengths(probe.mixture.dataset).mean())
    expected = [2e-3 + 1e-6 * tokens * positions[name] for name in ("cut by positions", CONFIGURED)]
    assert cut.factor == pytest.approx(expected[0] / expected[1], rel=0.02)
    assert cut.low is not None
    assert cut.high is not None
    assert cut.low <= cut.factor <= cut.high
    assert cut.arm == {"coreset.micro_batches": "positions"}
    assert grouped.arm == BY_LENGTH
    assert not grouped.recommended
    smaller = found["cut by positions, 4 micro-batches of 2"]
    assert smaller.factor is not None
    assert smaller.factor > cut.factor, "a call costs more here than padding"
    assert sum(finding.recommended for finding in found.values()) <= 1
    assert found[padding.PACKED].numbers["positions_a_token"] == pytest.approx(1)


def test_what_taking_part_costs_is_in_the_factor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = tiny_probe(tmp_path)
    assert padding.taking_part(probe, CoresetConfig(pool_factor=1)) is None, "no step was made before"
    cuts = [one for one in padding.measure(probe) if one.lever == padding.CUT]
    assert cuts[0].hurried
    assert cuts[0].why.endswith("what corebatch's own code adds to a step was not measured: give more --minutes")
    cut = CoresetConfig(pool_factor=1, micro_batches="positions")
    probe.known["short_step"] = 1e-9
    part = padding.taking_part(probe, cut)
    assert part is not None
    assert 0 < part < 5
    monkeypatch.setattr(padding, "taking_part", lambda *_: 10.0)
    found = {finding.lever: finding for finding in measure(probe)}
    assert found["cut by positions"].factor > 100
    assert found[padding.GROUPED].factor < 1, "the Trainer's own"


def test_a_step_of_one_micro_batch_is_cut_into_several(tmp_path: Path) -> None:
    probe = tiny_probe(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    found = {finding.lever: finding for finding in measure(probe)}
    assert found["cut by positions"].factor == pytest.approx(1)
    assert "nothing can be sorted" in found["cut by positions"].why
    several = found["cut by positions, 4 micro-batches of 2"]
    assert several.arm["gradient_accumulation_steps"] == 4
    assert several.numbers["positions_a_token"] < found["cut by positions"].numbers["positions_a_token"]


def test_what_is_configured_is_not_recommended_anew() -> None:
    class Args:
        per_device_train_batch_size, gradient_accumulation_steps, group_by_length = 4, 2, False

    arms = arms_of(CoresetConfig(pool_factor=2), Args())
    assert arms["plain cut"].keys == {"coreset.micro_batches": "plain"}
    assert "cut by positions" not in arms
    assert arms["packed"].keys == {"coreset.padding_free": True}
    assert padding.GROUPED not in arms, "a pool is of many lengths"


def test_what_cannot_be_measured_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_length = tiny_probe(tmp_path / "one", coreset={"pool_factor": 1, "by_length": {}})
    assert "rows come by length" in str(measure(by_length)[0].unmeasured)
    late = replace(tiny_probe(tmp_path / "two"), deadline=float("-inf"))
    monkeypatch.setattr(shapes, "train_once", lambda *_, **__: 10.0)
    assert measure(late)[-1].unmeasured == padding.NO_TIME


def test_the_interval_is_widened_by_micro_batches_on_which_the_fit_hangs() -> None:
    small = Layouts(pieces=[], dims=[[(1, 10)], [(1, 10)]], tokens=np.array([8.0, 8.0]))
    large = Layouts(pieces=[], dims=[[(1, 20)], [(1, 20)]], tokens=np.array([8.0, 8.0]))
    even = Timed([(1, 10), (1, 20), (1, 30), (1, 40)], [1.0, 2.0, 3.0, 4.0])
    assert factor_of(small, large, even) == pytest.approx((0.5, 0.5, 0.5))
    uneven = Timed([(1, 10), (1, 20), (1, 30), (1, 40)], [1.0, 2.0, 3.0, 8.0])
    factor, low, high = factor_of(small, large, uneven)
    assert low < 0.5 <= high
    assert low < factor <= high
    assert factor_of(small, large, even, rest=1.0)[0] == pytest.approx(2 / 3)
