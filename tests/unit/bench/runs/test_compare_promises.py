"""Advice in a comparison: which arm pulls which lever, what was promised, and what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from compare_runs import make_lines, make_plan, write_comparison

from corebatch.bench.advise.advice import Advice, advice_folder, write_advice
from corebatch.bench.advise.finding import Finding
from corebatch.bench.runs import Comparison, markdown, read_comparison
from corebatch.bench.runs.from_config import Parts
from corebatch.bench.runs.kept_promises import measured, promises_sheet
from corebatch.bench.runs.page import render
from corebatch.bench.runs.promises import promises_of
from corebatch.errors import ConfigError

FACTOR = {"factor": 0.8, "low": 0.7, "high": 0.9}
LEVERS = {
    "padding": {"coreset.micro_batches": "length"},
    "a smaller batch": {"per_device_train_batch_size": 4},
    "another optimizer": {"optim": "mada"},
    "all rows": {"coreset.pool_factor": 1},
    "which rows": {"coreset.selector": "importance", "coreset.scorer": "tokens"},
    "near-duplicates": {"subset.near_duplicates": {"keep": 0.9}},
    "longer rows": {"max_length": 2048},
    "sampling": {"coreset.sampling": {"temperature": 0.5}},
}


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": "none",
        "datasets": [{"path": "rows.jsonl"}],
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 8,
        "coreset": {"pool_factor": 2},
    }


def advise(values: dict[str, Any], levers: dict[str, Any] | None = None) -> Path:
    """Writes advice for a config where `corebatch advise` does."""
    levers = LEVERS if levers is None else levers
    findings = [Finding(lever=name, arm=arm, **FACTOR) for name, arm in levers.items()]
    findings += [Finding(lever="only told", factor=0.5), Finding(lever="no number", unmeasured="no time")]
    return write_advice(Advice(config=values, findings=findings, about={}), advice_folder(values["output_dir"]))


def compared(values: dict[str, Any], **block: Any) -> Parts:
    extra = {
        "by_length": {"coreset": {"micro_batches": "length"}},
        "small": {"training": {"per_device_train_batch_size": 4}},
        "mada": {"training": {"optim": "mada"}},
        "fewer": {"subset": {"method": "near_duplicates", "keep": 0.9}},
    }
    arms = ["plain_small@steps", "plain_small", "tokens_importance"]
    return Parts.of({**values, "compare": {"arms": arms, "extra_arms": extra, **block}}, "config.yaml")


def test_each_lever_finds_the_arm_that_pulls_it_and_it_alone(values: dict[str, Any]) -> None:
    advise(values)
    promises, without_arm = promises_of(compared(values))
    assert {promise.lever: promise.arm for promise in promises} == {
        "padding": "by_length@wall_clock",
        "a smaller batch": "small@wall_clock",
        "another optimizer": "mada@wall_clock",
        "all rows": "plain_small@wall_clock",
        "which rows": "tokens_importance@wall_clock",
    }
    assert {promise.against for promise in promises} == {"coreset@wall_clock"}
    assert {(promise.factor, promise.low, promise.high) for promise in promises} == {(0.8, 0.7, 0.9)}
    assert without_arm == ("near-duplicates", "longer rows", "sampling")


def test_a_lever_that_keeps_rows_once_is_an_arm_with_that_subset(values: dict[str, Any]) -> None:
    advise(values, {"near-duplicates": {"subset": {"method": "near_duplicates", "keep": 0.9}}})
    (promise,), _ = promises_of(compared(values))
    assert promise.arm == "fewer@wall_clock"


def test_the_config_that_came_in_may_be_another_arm_than_the_reference(values: dict[str, Any]) -> None:
    """Advice for the plain config, a comparison of what it recommends."""
    advise({**values, "coreset": {"pool_factor": 1}}, {"choosing": {"coreset.pool_factor": 2}})
    (promise,), _ = promises_of(compared(values))
    assert (promise.arm, promise.against) == ("coreset@wall_clock", "plain_small@wall_clock")


def test_what_is_not_advised_for_is_not_promised(values: dict[str, Any]) -> None:
    parts = compared(values)
    assert promises_of(parts) == ((), ())
    path = advise({**values, "coreset": {"pool_factor": 16}})
    assert promises_of(parts) == ((), tuple(LEVERS))  # no arm is the config that came in
    path = advise({**values, "model_name_or_path": "another"})
    assert promises_of(parts) == ((), ())
    with pytest.raises(ConfigError, match=r"of the same model\. Found another"):
        promises_of(compared(values, advice=str(path)))
    path.write_text("{}")
    with pytest.raises(ConfigError, match="what `corebatch advise` wrote"):
        promises_of(compared(values, advice=str(path.parent)))
    with pytest.raises(ConfigError, match=r"compare\.advice should be a path. Found 3"):
        compared(values, advice=3)


def told(folder: Path, promises: list[dict[str, Any]], runs: bool = True) -> Comparison:
    plan = {**make_plan(), "promises": promises, "without_arm": ["near-duplicates"]}
    return read_comparison(write_comparison(folder, plan, make_lines(plan) if runs else []))


def promise(of: str, factor: float, arm: str = "plain_small", low: Any = None, high: Any = None) -> dict[str, Any]:
    """Of an arm of the made-up comparison, whose steps take 1 second, against the reference's of 1.5."""
    names = {"arm": f"{arm}@wall_clock", "against": "coreset@wall_clock"}
    return {"lever": "padding", **names, "of": of, "factor": factor, "low": low, "high": high}


@pytest.mark.parametrize(
    "factor, low, high, close, sign",
    [
        (0.6, 0.5, 0.7, True, True),
        (0.5, None, None, False, True),
        (1.1, 1.05, 1.2, False, False),
        (0.8, 0.7, 1.1, True, None),
    ],
)
def test_seconds_of_a_step_are_met_or_not(
    tmp_path: Path, factor: float, low: Any, high: Any, close: bool, sign: bool | None
) -> None:
    for runs in (True, False):
        (one,) = measured(told(tmp_path / str(runs), [promise("seconds a step", factor, low=low, high=high)], runs))
        assert one.factor == pytest.approx(2 / 3)
        assert one.ratio == pytest.approx(2 / 3 / factor)
        assert (one.close, one.same_sign) == (close, sign)


def test_seconds_of_a_token_are_of_those_that_were_trained(tmp_path: Path) -> None:
    (one,) = measured(told(tmp_path, [promise("seconds a token", 0.5)]))
    assert one.factor == pytest.approx((1.0 / 32) / (1.5 / 32))
    (one,) = measured(told(tmp_path / "planned", [promise("seconds a token", 0.5)], runs=False))
    assert (one.factor, one.said) == (None, "no run yet")


def test_what_a_loss_costs_is_read_off_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("scipy.stats", reason="the statistics of a comparison need scipy (extra bench)")
    promises = [
        promise("seconds to the same loss", 0.7, "random"),
        promise("FLOPs to the same loss", 0.7, "tokens_importance"),
        promise("memory", 0.5),
    ]
    comparison = told(tmp_path, promises)
    first, second, third = measured(comparison)
    assert (first.factor, first.said) == (None, "not reached")  # it ends above the reference
    assert (second.factor, second.said) == (None, "not reached")
    assert third.said == "nothing that a comparison measures"
    turned = {"arm": "coreset@wall_clock", "against": "plain_small@wall_clock"}
    (back,) = measured(told(tmp_path / "back", [{**promise("seconds to the same loss", 0.7), **turned}]))
    assert back.factor is not None
    assert back.low is not None
    assert back.high is not None
    assert back.low <= back.factor <= back.high


def test_the_report_has_a_table_of_them(tmp_path: Path) -> None:
    pytest.importorskip("scipy.stats", reason="the statistics of a comparison need scipy (extra bench)")
    comparison = told(tmp_path, [promise("seconds a step", 0.5, low=0.4, high=0.6), promise("memory", 0.5)])
    sheet = promises_sheet(comparison)
    assert sheet is not None
    assert sheet.rows[0][4:] == ("0.50 (0.40 to 0.60)", "0.67", "1.33", "off, right sign")
    assert sheet.rows[1][7] == "nothing that a comparison measures"
    said = "Of 1 measured, 0 are within a factor of 1.25; of 1 with a sign, 1 have the right one."
    assert said in (sheet.caption or "")
    assert "No arm pulls these levers alone: near-duplicates." in (sheet.caption or "")
    assert "## Expected by the advice" in markdown(comparison)
    pytest.importorskip("matplotlib", reason="the page of a comparison needs matplotlib (extra report)")
    assert "Expected by the advice against measured" in render(comparison)


def test_without_advice_the_report_says_nothing_of_it(tmp_path: Path) -> None:
    comparison = read_comparison(write_comparison(tmp_path))
    assert promises_sheet(comparison) is None
    assert "Expected by the advice" not in markdown(comparison)
    assert json.loads((tmp_path / "plan.json").read_text()).get("promises") is None
