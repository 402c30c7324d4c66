"""Monte Carlo through the trainer: the mean of what is trained is what is claimed. benchmarks/claimed.py has 300 seeds.

The error of the mean over seeds, of all parameters together, is held against its own standard error; and the same mean
is far enough from what every other objective claims, so that the test could fail.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SEEDS, STEPS = range(1, 7), 16
MOST, LEAST = 2.5, 2.5
"""Standard errors: to what is claimed, at most; to what any other objective claims, at least."""
EXACT = 1e-6
"""Of the gradient's norm: where whole passes are trained, nothing is left to chance."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        return importlib.import_module("claimed")


CASES = [
    {"objective": "tokens", "drawing": "skewed", "chosen": "cube", "lora": True},
    {"objective": "examples", "drawing": "as in the data", "chosen": "cube"},
    {"objective": "sources", "drawing": "skewed", "chosen": "importance", "weighted": True},
    {"objective": "shares", "drawing": "equally often", "chosen": "importance", "lora": True},
    {"objective": "temperature", "drawing": "as in the data", "chosen": "all rows", "weighted": True},
    {"objective": "drawn", "drawing": "skewed", "chosen": "all rows"},
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_the_mean_of_what_is_trained_is_what_is_claimed(script: Any, case: dict[str, Any]) -> None:
    found = script.measure(script.Case(**case), SEEDS, STEPS)
    assert found.error < MOST * found.standard + EXACT
    assert found.power > LEAST


@pytest.mark.slow
def test_the_default_follows_what_is_claimed_over_the_steps_of_a_run(script: Any) -> None:
    """It carries its errors over, so that more steps have a smaller one: no draw of it is unbiased by itself."""
    found = script.measure(script.Case(objective="sources", chosen="default"), SEEDS, 32)
    assert found.error < 0.15
    assert found.power > LEAST
