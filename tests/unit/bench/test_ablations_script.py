"""benchmarks/ablations.py: the page is what it writes of its lines."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
ORIGIN = {
    "seed": 0,
    "time": "2026-01-02T03:04:05",
    "commit": "0123456",
    "hardware": {"machine": "x86_64", "cpu_cores": 2, "torch_threads": 1, "gpu": None},
    "versions": {"torch": "2.13.0", "transformers": "5.24.0"},
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("ablations")


def of_gradients(method: str, budget: int, after_steps: int, effective: float) -> dict[str, Any]:
    """A line; the errors of four windows of 50 steps are those of its effective batch."""
    window = {"effective": effective, "effective_spread": 0.01, "error": 0.5, "error_spread": 0.02, "length": 0.96}
    costs = {"c": 2.5, "c_low": 2.4, "c_high": 2.6, "c_checkpointing": 3.4, "s": 1.1, "s_low": 1.0, "s_high": 1.2}
    return {
        **ORIGIN,
        **costs,
        "part": "gradients",
        "method": method,
        "budget": budget,
        "after_steps": after_steps,
        "windows": {"1": {**window, "effective": 0.4}, "50": window},
        "errors": [1 / effective - 1] * 4,
        **{"large": 128, "population": 384, "draws": 200, "sources": 9},
        "bias_given_pool": 0.03,
        "kept": 5.5,
        "select_ms": 2.0,
        "cost_ratios": {"2.85": {"cost_tokens": 32.0}},
    }


def test_the_page_has_what_the_script_makes_of_its_lines(script: Any) -> None:
    page = script.PAGE.read_text(encoding="utf-8")
    tables = script.tables(script.read(script.OUTPUT), script.PARTS)
    assert len(tables) == 13
    for name, text in tables.items():
        assert f"<!-- {name} -->\n{text.strip()}\n<!-- end of {name} -->" in page


def test_every_table_of_gradients_has_its_place_on_the_page(script: Any) -> None:
    better = "facility location, Adam's map"
    lines = [
        of_gradients(name, budget, after, 0.6 if name == better else 0.5)
        for name in script.methods()
        for budget in (64, 32)
        for after in (10, 200)
    ]
    tables = script.tables(lines, ["gradients"])
    page = script.PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- {name} -->" in page and f"<!-- end of {name} -->" in page for name in tables)
    normalised = tables["ablation: Adam's normalisation"]
    cells = "0.40 / {} ± 0.01{} | 0.50 ± 0.02 | 3 % | 0.96"
    first, other = cells.format("0.50", ""), cells.format("0.60", " ▲")
    assert f"| **facility location** | {first} | {first} | 0.50 / 0.50 |" in normalised
    assert f"| {better} | {other} | {other} | 0.60 ▲ / 0.60 ▲ |" in normalised
    assert "| **random** |" in tables["ablation: Small sources kept whole or not"]
    assert "| 5.5 / 5.5 |" in tables["ablation: Small sources kept whole or not"]
    assert "| random | 0.40 / 0.50 | 3 % | 2.00 |" in tables["ratios"]
    assert "after 200 AdamW steps, and in columns that say so after 10." in tables["settings of the ablations"]


def test_lines_of_independent_draws_are_refused(script: Any) -> None:
    line = of_gradients("random", 64, 10, 0.5)
    del line["windows"]
    with pytest.raises(SystemExit, match="Found independent draws"):
        script.tables([line], ["gradients"])
