"""The study of the recommended config: seconds to a loss out of curves, its tests, and the page."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which the script sets for good
    return importlib.import_module("advised")


def line(arm: str, seed: int, seconds: float, **keys: Any) -> dict[str, Any]:
    """A run whose loss falls by 1 within so many seconds, evenly, and twice as long."""
    curve = [[seconds * part, 4 + 0.01 * seed - part] for part in (0.5, 1.0, 1.5, 2.0)]
    return {
        "mixture": "mathmix", "arm": arm, "seed": seed, "curve": curve, "final": {"token": curve[-1][1]}, "left_out": 0,
        "set": {"coreset.micro_batches": "positions"}, "seconds_of_advice": 100.0, "hardware": "a machine",
        "versions": "torch", "date": "2026-11-29", "commit": "abc",
        "expected": [{"lever": "cut", "of": "seconds a step", "factor": 0.75, "low": 0.7, "high": None}], **keys,
    }  # fmt: skip


def test_seconds_to_a_loss_that_all_runs_reach(script: Any) -> None:
    lines = [line("coreset", seed, 10.0 + seed) for seed in (1, 2, 3)]
    lines += [line("advised", seed, 8.0) for seed in (1, 2, 3)]
    goal, found = script.factors(lines)
    assert goal == pytest.approx(2.03), "the highest of the last"
    for seed, factor in zip((1, 2, 3), found, strict=True):
        assert factor == pytest.approx(8.0 / (10.0 + seed))
    mean, low, high, p = script.spread(found)
    assert low < mean < high < 1
    assert p < 0.05


def test_the_page_says_what_is_faster_and_where_nothing_is_recommended(script: Any) -> None:
    lines = [
        line(arm, seed, seconds + 0.01 * seed)
        for arm, seconds in (("coreset", 10.0), ("advised", 7.5))
        for seed in (1, 2, 3)
    ]
    lines.append({**line("", 0, 1.0), "mixture": "fixed", "set": {}, "expected": []})
    del lines[-1]["arm"]
    text = script.page(lines)
    assert "Surely faster (p < 0.05 after Holm): mathmix; surely slower: none" in text
    assert '| mathmix | `coreset.micro_batches: "positions"` | cut: 0.75 of seconds a step | **0.75** (' in text
    assert "| fixed | nothing |" in text
    assert "seed 1, 2, 3; a machine" in text
