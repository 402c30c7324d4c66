"""benchmarks/advice.py: the page of its lines, and what its cases are made of."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from corebatch.config.settings import settings_from

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("advice")


def line(expected: float, measured: float) -> dict[str, Any]:
    factor = {"expected": expected, "expected_low": None, "expected_high": None}
    found = {"measured": measured, "measured_min": measured, "measured_max": measured}
    return {"kind": "factor", "case": "one", "lever": "cut", **factor, **found, **where()}


def where() -> dict[str, Any]:
    return {"seed": 0, "hardware": "h", "versions": "v", "date": "d", "commit": "c"}


def test_the_page_says_how_many_factors_are_near_and_of_the_right_sign(script: Any) -> None:
    costs = {"kind": "costs", "case": "one", "step_seconds": 2.0, "train_seconds": 1.5, "predicted_train_seconds": 1.8}
    lines = [{**costs, **where()}, line(0.5, 0.6), line(1.2, 0.9), line(1.0, 1.01), line(0.6, 1.0)]
    page = script.page(lines)
    assert "Of 4 factors 2 are within 25 % of what was measured, the median is 25% off, the worst 40%." in page
    assert "1 of 2 have the right sign" in page
    assert "| one | cut | 0.50 | 0.60 (0.60 to 0.60) | -17% |" in page
    assert "within 20% of what the trainer took" in page
    assert "| one | 2 | 1.5 | 1.8 | - | - |" in page


def test_cases_are_configs_that_are_read(script: Any, tmp_path: Path) -> None:
    class Files:
        folder = tmp_path
        options = type("Options", (), {"seed": 3})

        def model(self, name: str) -> Path:
            return tmp_path / name

        def data(self, name: str) -> Path:
            return tmp_path / name

    for case in script.CASES:
        settings = settings_from(script.values_of(case, Files()), case.name)
        assert settings.training["seed"] == 3
        assert settings.lora == ("LoRA" in case.name)
    rows = script.fixed_rows(3)
    assert {len(row["input_ids"]) for row in rows} == {script.WIDTH}
