"""`corebatch compare --plan` on a tiny model: what it trains, what it tells, and what the comparison keeps of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_cli_compare import Here

from corebatch.bench.runs import engine, jobs, markdown, read_comparison
from corebatch.cli import compare as command
from corebatch.errors import ConfigError
from corebatch.files import write_text


@pytest.fixture
def values(
    settings: dict[str, Any], data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> dict[str, Any]:
    for key in ("save_steps", "logging_steps", "seed"):
        del settings[key]
    monkeypatch.setattr(command, "Processes", Here)
    monkeypatch.setattr(jobs, "FLOPS_POOLS", 1)
    monkeypatch.setattr(jobs, "time_arm", lambda *_: {"seconds": [1.0, 1.0]})
    own = {"arms": ["plain_small", "random"], "seeds": 2, "evaluations": 1, "curve_rows": 4, "timing_pools": 2}
    own |= {"timing_rounds": 1, "tune": {"enabled": False}, "smallest_effect": 0.5}
    run = {"gradient_accumulation_steps": 1, "max_steps": 3, "eval_datasets": [{"path": str(data_file)}]}
    return {**settings, **run, "compare": own, "output_dir": str(tmp_path / "comparison")}


def told(values: dict[str, Any], earlier: Path | None = None) -> str:
    text = io.StringIO()
    command.plan(values, "config.yaml", Console(file=text, width=240), earlier)
    return text.getvalue()


def test_a_plan_trains_pilots_alone_and_the_comparison_keeps_it(values: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(values["output_dir"])
    text = told(values)
    for words in (
        "coreset@wall_clock",
        "seeds for 0.5",
        "1 degree of freedom",
        "seeds 1001 and 1002",
        "6 pilots will tell how much runs differ, in about 18.0 s",  # of 3 steps, each of a second
        "To the end about",
    ):
        assert words in text
    pilots = (folder / "pilots.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in pilots] == [1001] * 3 + [1002] * 3
    assert not (folder / "runs.jsonl").exists()
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["power"]["baselines"] == 2
    assert plan["power"]["alpha"] == pytest.approx(0.025)
    for mean in ("token", "example", "source"):
        assert plan["power"]["means"][mean]["sd"][0] > 0
        assert 0 <= plan["power"]["means"][mean]["rows"] <= 1

    assert "training pilots" not in told(values)
    assert (folder / "pilots.jsonl").read_text().splitlines() == pilots, "pilots that are there are not trained again"

    command.compare(values, "config.yaml", Console(quiet=True))
    found = read_comparison(folder)
    assert found.plan.power == plan["power"]
    assert {run.seed for run in found.runs} == {1, 2}, "pilots are in no test"
    assert "Computed beforehand" in markdown(found)
    assert "sd as it came out" in markdown(found)

    told(values)  # of runs that are there
    assert read_comparison(folder).plan.power == plan["power"], "what was computed beforehand stays"
    write_text(folder / "pilots.jsonl", "")
    other = {**values, "output_dir": str(tmp_path / "other")}
    assert "the runs in comparison" in told(other, folder)
    assert not (tmp_path / "other" / "pilots.jsonl").exists()


def test_a_plan_without_a_second_arm_is_refused(values: dict[str, Any]) -> None:
    values["compare"]["arms"] = []
    with pytest.raises(ConfigError, match="needs an arm beside the reference"):
        told(values)


def test_an_earlier_comparison_needs_two_seeds(values: dict[str, Any], tmp_path: Path) -> None:
    told(values)
    with pytest.raises(ConfigError, match="two seeds of its reference"):
        told({**values, "output_dir": str(tmp_path / "other")}, Path(values["output_dir"]))


@pytest.mark.parametrize("effect", [0, -1, "small"])
def test_an_effect_that_is_none_is_refused(values: dict[str, Any], effect: Any) -> None:
    values["compare"]["smallest_effect"] = effect
    with pytest.raises(ConfigError, match=r"compare\.smallest_effect should be above 0"):
        told(values)


def quick(values: dict[str, Any]) -> Any:
    return read_comparison(command.compare(values, "config.yaml", Console(quiet=True), quick=True))


def test_a_quick_comparison_fits_its_minutes_and_says_what_it_can_tell(values: dict[str, Any]) -> None:
    values |= {"max_steps": 400, "compare": {"arms": ["plain_small"], "seeds": 2, "final_rows": 8}}
    values["warmup_steps"] = 1
    found = quick(values)  # a step takes a second, as it was timed: 0.6 of 600 s for two arms with two seeds
    assert found.folder.name == "comparison-quick"
    (steps,) = {arm.steps for arm in found.plan.arms}
    assert 60 < steps <= 90
    assert [arm.method for arm in found.plan.arms] == ["coreset", "plain_small"], "what the config says is honoured"
    assert found.plan.tuning["enabled"] is False, "and what it leaves out is small"
    text = markdown(found)
    first = text.split("## The question")[0]
    assert f"Quick, within 10 minutes: {steps} of the config's 400 steps, 2 seeds" in first
    assert "It can tell what a step of each arm costs" in first
    assert "by the token mean" in first
    assert "It cannot tell smaller differences" in first
    assert quick(values).plan.reference_arm.steps == steps, "it goes on with the steps of its plan"


def test_a_model_that_is_too_slow_for_ten_minutes_is_refused(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "time_arm", lambda *_: {"seconds": [60.0, 60.0]})
    with pytest.raises(ConfigError, match=r"--quick should have time for 20 steps of 3 arms with 2 seeds"):
        quick({**values, "max_steps": 400})


def test_a_quick_comparison_whose_timing_alone_is_too_slow_ends_early(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "TIMING_SHARE", 0.0)
    with pytest.raises(ConfigError, match=r"--quick should have its steps timed within .* Found 0 of 15 measurements"):
        quick({**values, "max_steps": 400, "compare": {"arms": ["plain_small", "random"], "timing_pools": 1}})


def test_a_comparison_that_has_runs_is_timed_no_further(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arms would have other steps than their runs. Before, rounds that differ are followed by more."""
    turn = iter(range(100))

    def unsteady(arm: Any, *_: Any) -> dict[str, Any]:
        return {"seconds": [1.0 + next(turn) % 2 if arm.method.name == "plain_small" else 1.0] * 2}

    monkeypatch.setattr(jobs, "time_arm", unsteady)
    values["compare"] |= {"arms": ["plain_small"], "timing_rounds": 2, "seeds": 1}
    folder = Path(values["output_dir"])
    command.compare(values, "config.yaml", Console(quiet=True))
    timing = (folder / "timing.jsonl").read_text()
    rounds = {line["round"] for line in map(json.loads, timing.splitlines()) if line["kind"] == "time"}
    assert rounds == set(range(8))
    fewer = [line for line in timing.splitlines() if json.loads(line)["round"] in (None, 0, 1)]
    write_text(folder / "timing.jsonl", "".join(line + "\n" for line in fewer))
    command.compare(values, "config.yaml", Console(quiet=True))
    assert (folder / "timing.jsonl").read_text().splitlines() == fewer
