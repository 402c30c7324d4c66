"""benchmarks/micro_batches.py: what it computes without training, and the page of its lines."""

from __future__ import annotations

import importlib
import statistics
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
LENGTHS = [3 + 7 * number % 61 for number in range(256)]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("micro_batches")


def test_the_grouped_order_is_an_epoch_of_steps_of_like_rows(script: Any) -> None:
    order = script.grouped_order(LENGTHS, 16, seed=1)
    assert sorted(order) == list(range(256))
    assert order == script.grouped_order(LENGTHS, 16, seed=1) != script.grouped_order(LENGTHS, 16, seed=2)
    steps = [[LENGTHS[row] for row in order[start : start + 16]] for start in range(0, 256, 16)]
    assert statistics.mean(map(statistics.pstdev, steps)) < statistics.pstdev(LENGTHS) / 2


def test_rows_of_the_grouped_arm_are_spread_over_its_epoch(script: Any) -> None:
    rows = script.Rows(None, LENGTHS)
    drawn = rows.grouped(32, 4, seed=1)
    assert len(set(drawn)) == 32
    assert statistics.mean(LENGTHS[row] for row in drawn) == pytest.approx(statistics.mean(LENGTHS), rel=0.1)
    assert [LENGTHS[row] for row in rows.shortest(4)] == [min(LENGTHS)] * 4
    assert rows.drawn(8, 1) == rows.drawn(8, 1) != rows.drawn(8, 2)


def test_what_micro_batches_hold(script: Any) -> None:
    assert script.largest_plain([3, 9, 4, 2, 5], 2) == 18
    sizes = script.Sizes(rows=32, micro_batch=4)
    rows = LENGTHS[:32]
    found = {(arm, world): script.cut_step(arm, rows, world, sizes) for arm in script.WAYS for world in (1, 2)}
    plain = sum(4 * max(rows[start : start + 4]) for start in range(0, 32, 4)) / sum(rows)
    assert {each["plain_positions_a_token"] for (_, world), each in found.items() if world == 1} == {plain}
    for (arm, _), each in found.items():
        assert 1 <= each["positions_a_token"] < plain
        assert each["largest_to_plain"] <= (0.5 if arm == script.CAPPED else 1)
    assert {found[arm, 1]["tokens_apart"] for arm in script.WAYS} == {0}
    most = script.summed(list(found.values()))
    assert most["tokens_apart_max"] == round(max(each["tokens_apart"] for each in found.values()), 4)


def test_how_far_weights_are_apart(script: Any) -> None:
    one, other = {"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(2)}, {"a": torch.tensor([3.0, 4.0])}
    assert script.apart(one, other) == 0
    assert script.apart({"a": torch.tensor([3.0, 4.5])}, other) == pytest.approx(0.1)


def test_steps_of_unequal_tokens_count_alike_in_the_mean_of_losses(script: Any) -> None:
    sums, counts = torch.tensor([1.0, 3.0, 40.0, 40.0], dtype=torch.float64), torch.tensor([1, 1, 20, 20])
    mixed = script.loss_of_steps([torch.tensor([0, 2]), torch.tensor([1, 3])], sums, counts)
    grouped = script.loss_of_steps([torch.tensor([0, 1]), torch.tensor([2, 3])], sums, counts)
    assert mixed["mean"] == pytest.approx((41 / 21 + 43 / 21) / 2)
    assert (grouped["mean"], grouped["tokens_deviation"] > 1, mixed["tokens_deviation"]) == (2, True, 0)


def cost(script: Any, setting: Any, arm: str) -> dict[str, Any]:
    times = {f"{key}{end}": 1.5 for key in ("step_ms", "faster") for end in ("", "_min", "_max")}
    memory = {"peak_bytes": 2**20, "peak_to_plain": 0.5, "counted_rows": 32} if arm in script.FEW else {}
    held = {"tokens": 1000.0, "positions_a_token": 1.05, "largest_micro_batch": 512, "scored": 0.0}
    return {**script.said(setting, script.Sizes()), "arm": arm, **times, **memory, **held}


def test_the_page_has_every_arm_and_setting(script: Any) -> None:
    lines = [
        {"part": "cost", **cost(script, setting, arm)} for setting in script.SETTINGS for arm in setting.arms
    ]  # fmt: skip
    first = script.SETTINGS[0]
    lines.append({"part": "cost", **cost(script, first, "positions, equal lengths"), "length": 256})
    steps = [
        script.cut_step("positions", LENGTHS[:32], world, script.Sizes(rows=32, micro_batch=4)) for world in (1, 2)
    ]
    lines += [
        {"part": "layout", "arm": "positions", "ranks": world, "rows": 32, "steps": 1, **script.summed([step])}
        for world, step in zip((1, 2), steps, strict=True)
    ]
    same = {"adapter": "lora", "dtype": "float32", "steps": 20, "rows": 16, "moved": 0.1, "apart": 1.25e-7}
    lines += [{"part": "weights", "arm": arm, **same} for arm in ("positions", script.CAPPED)]
    loss = {"epochs": 10, "rows": 128, "token_mean": 3.0, "mean": 3.1, "deviation": 0.1, "tokens_deviation": 0.5}
    lines += [{"part": "loss", "arm": arm, **loss} for arm in (script.PLAIN, script.GROUPED)]
    common = {
        "data": "mathmix",
        "max_length": 256,
        "seed": 0,
        "hardware": "here",
        "versions": "torch",
        "date": "2026-11-28",
        "commit": "abc",
    }
    text = script.page([{**line, **common} for line in lines])
    for word in (*(setting.name for setting in script.SETTINGS), "1.50x (1.50 to 1.50)", "1 MB (0.50)", "1.2e-07"):
        assert word in text
    assert "At equal lengths there is nothing to gain: 1.50x" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == sum(2 + n for n in (len(script.SETTINGS), len(script.ALL), len(script.SETTINGS), 2, 1, 2))
    assert text.count("mathmix, rows of at most 256 tokens; seed 0; here") == 4
