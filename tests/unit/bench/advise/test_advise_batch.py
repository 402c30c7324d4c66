"""What the noise scale says of the batch: in words, as another batch, and as one that grows."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from corebatch.bench.advise.batch_size import (
    GROWING,
    LARGER,
    LEVER,
    SMALLER,
    MeasuredScale,
    Scales,
    batch_levers,
    times,
)
from corebatch.config.settings import settings_from
from corebatch.config.values import with_keys
from corebatch.trainer import CoresetConfig
from probes import advised_config

INF = math.inf


def scales(raw: tuple[float, ...], own: tuple[float, ...] | None = None) -> Scales:
    return Scales(MeasuredScale(*raw), None if own is None else MeasuredScale(*own))


@pytest.mark.parametrize(
    ("raw", "own", "words"),
    [
        ((5, 4, 7), None, "is above the noise scale, 5 (4 to 7) rows: make it smaller, selection cannot help"),
        ((5, 4, 9), None, "is near the noise scale, 5 (4 to 9) rows: its size is right"),
        ((5, 4, INF), None, "is within what is known of the noise scale, 5 (4 to infinite) rows: noise may bind"),
        ((50, 9, INF), None, "noise of the gradient binds"),
        ((INF, INF, INF), None, "far below the noise scale, which is beyond what was measured: noise binds"),
        ((5, 4, 7), (6, 5, 7), "above the noise scale, 5 (4 to 7) rows by the gradients themselves, 6 (5"),
        ((5, 4, 7), (900, 500, INF), "above the noise scale by one measure and below it by the other"),
        ((5, 4, 7), (8, 6, 10), "is near or above the noise scale"),
        ((50, 40, 70), (8, 6, 10), "is near or below the noise scale"),
    ],
)  # fmt: skip
def test_noise_binds_where_both_measures_say_so(raw: Any, own: Any, words: str) -> None:
    assert words in scales(raw, own).verdict(8)


def probe_of(accumulation: int, optim: str = "adamw_torch", **known: float) -> Any:
    """Of steps of 4 rows a micro-batch; a run of 100 steps."""
    args = SimpleNamespace(
        gradient_accumulation_steps=accumulation, per_device_train_batch_size=4, learning_rate=5e-3, optim=optim,
        max_steps=100, warmup_steps=10,
    )  # fmt: skip
    settings = SimpleNamespace(coreset=CoresetConfig(pool_factor=1))
    return SimpleNamespace(args=args, settings=settings, batch_size=4 * accumulation, known=known)


@pytest.mark.parametrize(
    ("accumulation", "high", "optim", "expected"),
    [
        (16, 5.0, "adamw_torch", (2, 1.77e-3)),
        (16, 20.0, "sgd", (8, 2.5e-3)),
        (6, 5.0, "adamw_torch", (3, 3.54e-3)),
        (16, 40.0, "adamw_torch", None),
        (16, INF, "adamw_torch", None),
        (1, 1.0, "adamw_torch", None),
    ],
)
def test_a_batch_above_both_scales_is_made_smaller(
    tmp_path: Path, accumulation: int, high: float, optim: str, expected: tuple[int, float] | None
) -> None:
    probe = probe_of(accumulation, optim)
    own = None if optim == "sgd" else (3.0, 0.7, min(4.0, high))
    found, *growing = batch_levers(probe, scales((min(4.0, 0.8 * high), 0.7, high), own), {})
    if expected is None:
        assert found.lever == LEVER
        assert found.factor is None
        assert "it stays, and does not grow" in found.why
        assert ("cannot be halved" in found.why) == (accumulation == 1)
        assert not growing
        return
    count, rate = expected
    assert found.lever == SMALLER
    again = accumulation // count
    keys = {"gradient_accumulation_steps": count, "learning_rate": rate}
    assert found.arm == {**keys, "max_steps": 100 * again, "warmup_steps": 10 * again}
    scale = 4.0 if own is None else 3.0
    assert found.factor == pytest.approx((1 + 4 * count / scale) / (1 + 4 * accumulation / scale))
    assert found.low < found.factor < found.high < 1  # type: ignore[operator]
    assert not found.recommended, "the scale grows in a run"
    assert "--checkpoints" in found.why
    assert "--checkpoints" in str(growing[0].unmeasured) or optim == "sgd"
    made = settings_from(with_keys(advised_config(tmp_path), found.arm), "advice").training_arguments()
    assert made.gradient_accumulation_steps == count


def test_a_batch_that_is_above_the_scale_by_one_measure_stays() -> None:
    (found,) = batch_levers(probe_of(16), scales((5, 4, 7), (900, 500, INF)), {})
    assert found.lever == LEVER
    assert not found.arm


def test_a_smaller_batch_is_recommended_where_checkpoints_say_that_it_lasts() -> None:
    now, probe = scales((4, 3, 5), (4, 3, 6)), probe_of(16)
    smaller, growing = batch_levers(probe, now, {"checkpoint-50": MeasuredScale(9, 7, 12)})
    assert smaller.lever == SMALLER
    assert smaller.numbers["rows_of_a_step"] == 16, "above the scale of the checkpoint as well"
    assert "for its beginning" not in smaller.why
    assert [smaller.recommended, growing.recommended].count(True) == 1


def test_a_batch_grows_where_the_scale_does(tmp_path: Path) -> None:
    later = {"checkpoint-25": MeasuredScale(20, 15, 30), "checkpoint-80": MeasuredScale(90, 70, 120)}
    stays, growing = batch_levers(probe_of(16), scales((4, 3, 5), (4, 3, 6)), later)
    assert stays.lever == LEVER
    assert growing.lever == GROWING
    assert growing.recommended
    budget = growing.arm["coreset.budget"]
    assert budget == {"ramp": {"most": 8.0, "until": 0.8, "learning_rate": "sqrt"}}
    assert growing.arm["gradient_accumulation_steps"] == 2
    assert growing.arm["max_steps"] == 800
    rows = [8 * (1 + 7 * place / 0.8) for place in (0, 0.25, 0.8)]
    each = [times(64, own, scale, 0) for own, scale in zip(rows, (4, 20, 90), strict=True)]
    assert growing.factor == pytest.approx(sum(each) / 3)
    assert each[-1] == pytest.approx(1)
    assert growing.low < growing.factor < growing.high < 1  # type: ignore[operator]
    made = settings_from(with_keys(advised_config(tmp_path), growing.arm), "advice")
    assert made.coreset.budget is not None
    assert made.coreset.budget.rows(8, 8, 0.4, None) == pytest.approx(36)
    probe = probe_of(16)
    probe.settings.coreset = CoresetConfig(pool_factor=1, budget="noise")
    assert "plans the rows" in str(batch_levers(probe, scales((4, 3, 5)), later)[1].unmeasured)


def test_a_larger_batch_pays_where_updates_take_the_time() -> None:
    probe = probe_of(1, optimizer=0.5, step=1.0)
    (found,) = batch_levers(probe, scales((900, 800, 1000), (2000, 1000, INF)), {})
    assert found.lever == LARGER
    assert found.recommended
    assert found.arm["gradient_accumulation_steps"] == 8
    assert found.arm["max_steps"] == 12
    assert found.factor == pytest.approx((2000 + 32) / (2000 + 4) * (0.5 + 0.5 / 8))
    assert found.low == pytest.approx(0.5 + 0.5 / 8)
    (found,) = batch_levers(probe_of(1, optimizer=0.0, step=1.0), scales((900, 800, 1000)), {})
    assert found.lever == LARGER
    assert not found.recommended
    assert found.factor > 1  # type: ignore[operator]
