"""Equal wall-clock where few rows are much longer: what is counted before, and what runs had against it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from compare_runs import change, make_lines, make_plan, write_comparison
from datasets import Dataset

from corebatch.bench.runs import Comparison, read_comparison, step_positions
from corebatch.bench.runs.arms import Arm, make_arms
from corebatch.bench.runs.costs import StepPositions, relative_error, side_by_side
from corebatch.bench.runs.from_config import RunData
from corebatch.bench.runs.rehearsals import time_arm
from corebatch.bench.runs.statistics import LOSSES, paired_tests
from corebatch.bench.runs.step_positions import FIRST_SEED, count_positions, may_be_counted
from corebatch.bench.runs.training_run import RunPlan, train_arm
from corebatch.trainer import CoresetConfig
from training import VOCABULARY, Collator, tiny_model

CORESET, PLAIN, STEPS = "coreset@wall_clock", "plain_small@wall_clock", "plain_small@steps"


def heavy(count: int, seed: int) -> list[int]:
    """Positions of steps, of which one in twenty has eleven times as many."""
    generator = random.Random(seed)
    return [1100 if generator.random() < 0.05 else 100 for _ in range(count)]


def timed(number: int, method: str, positions: list[int], slow: float = 1.0) -> dict[str, Any]:
    """A round in which a step takes 0.2 s and a millisecond a position, on a machine that is `slow`."""
    steps = [(slow * (0.2 + 0.001 * each), each) for each in positions]
    seconds, mean = (sum(column) / len(steps) for column in zip(*steps, strict=True))
    return {"round": number, "method": method, "seconds": [seconds] * 2, "positions": [mean] * 2, "steps": steps}


def test_few_steps_with_few_long_rows_mislead_and_their_seconds_are_moved_to_what_is_counted() -> None:
    """The reference's steps are all alike; the arm's timed ones have too many long rows, and then too few."""
    lines = []
    for number, (slow, long) in enumerate(((1.0, 3), (4.0, 1), (1.0, 2))):
        lines += [timed(number, "coreset", [150] * 20, slow), timed(number, "arm", [1100] * long + [100] * 17, slow)]
    counted = heavy(20_000, 0)
    mean = sum(counted) / len(counted)
    known = StepPositions(mean=(mean, mean), error=relative_error(counted), spread=1.4)
    alike = StepPositions(mean=(150, 150), error=0.0, spread=0.0)
    truth = (0.2 + 0.001 * mean) / 0.35
    naive = side_by_side(lines, "coreset", {})["arm"]
    found = side_by_side(lines, "coreset", {"arm": known, "coreset": alike})["arm"]
    assert abs(naive[0] / 0.35 / truth - 1) > 0.1
    assert naive[2] is not None
    assert naive[2] > 0.05, "and the spread over rounds tells it"
    assert found[:2] == pytest.approx((truth * 0.35,) * 2, rel=1e-6)
    assert found[2] == pytest.approx(known.error, rel=0.05)


def test_a_single_round_tells_no_error() -> None:
    lines = [timed(0, name, [100, 200]) for name in ("coreset", "arm")]
    assert side_by_side(lines, "coreset", {})["arm"][2] is None


def test_a_steps_seconds_fall_at_most_in_proportion_to_its_positions() -> None:
    """A slope out of noise takes nothing below what a position can cost."""
    line = {"round": 0, "method": "coreset", "seconds": [1.0, 1.0], "positions": [100, 100]}
    line["steps"] = [(0.1, 99), (1.0, 100), (1.9, 101)]
    known = StepPositions(mean=(50, 50), error=0.0, spread=0.0)
    assert side_by_side([line], "coreset", {"coreset": known})["coreset"][0] == pytest.approx(0.5)
    line["steps"] = [(1.9, 99), (1.0, 100), (0.1, 101)]
    assert side_by_side([line], "coreset", {"coreset": known})["coreset"][0] == pytest.approx(1.0)


def test_rounds_without_a_long_row_do_not_tell_what_one_takes() -> None:
    lines = [timed(number, "coreset", [100] * 20) for number in range(3)]
    known = StepPositions(mean=(150, 150), error=0.0, spread=1.4)
    assert side_by_side(lines, "coreset", {"coreset": known})["coreset"][2] == pytest.approx(0.5)
    alike = StepPositions(mean=(100, 100), error=0.0, spread=0.0)
    assert side_by_side(lines, "coreset", {"coreset": alike})["coreset"][2] == 0


def test_what_cannot_be_counted_is_as_it_was_timed() -> None:
    lines = [timed(number, "arm", [100, 300 + number]) for number in range(3)]
    found = StepPositions.of(None, lines)
    assert found is not None
    assert found.mean == pytest.approx((200.5, 200.5))
    assert found.error == pytest.approx(relative_error([200, 200.5, 201]))
    assert StepPositions.of(None, [{"seconds": [1.0, 1.0]}]) is None, "lines of before positions were counted"


# ---- a data set with few long rows ------------------------------------------------------------------------------


LONG = 44


@pytest.fixture
def data(one_thread: None) -> RunData:
    """One row in forty is eleven times as long as the others."""
    generator = random.Random(1)
    lengths = [LONG if number % 40 == 7 else 4 for number in range(480)]
    rows = [[generator.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]
    train = Dataset.from_dict({"input_ids": rows, "labels": rows, "source": ["one"] * len(rows)})
    nothing: Any = None
    return RunData(
        make_model=lambda: tiny_model(lora=False), tokenizer=None, train=train, collate=Collator(),
        tune=nothing, curve=nothing, final=nothing,
    )  # fmt: skip


def arms() -> dict[str, Arm]:
    """One that chooses, and a plain one, of four rows a step."""
    training = {"per_device_train_batch_size": 4, "use_cpu": True}
    block = {"pool_factor": 3}
    made = make_arms(["plain_small"], {}, CoresetConfig.from_dict(block), block, training)
    return {arm.method.name: arm for arm in made}


@pytest.mark.parametrize("method", ["coreset", "plain_small"])
def test_what_is_counted_without_training_is_what_a_run_has(data: RunData, method: str) -> None:
    arm = arms()[method]
    assert may_be_counted(arm)
    line = count_positions(arm, data, steps=40, least=2)
    _, run = train_arm(arm, data, RunPlan(steps=40, seed=FIRST_SEED))
    pass_ = 480 // arm.rows_drawn  # a run goes on with its second pass, what is counted begins anew
    assert line["counted"] >= 40
    assert len(run.positions) == 40
    _, other = train_arm(arm, data, RunPlan(steps=pass_, seed=FIRST_SEED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_positions, "PASSES", 1)
        once = count_positions(arm, data, steps=pass_, least=pass_)
    assert once["positions"][0] == pytest.approx(sum(other.positions) / pass_), "step by step the same rows"
    error = line["error"] + once["spread"] / 40**0.5
    assert sum(run.positions) / 40 == pytest.approx(line["positions"][0], rel=4 * error)


def test_a_few_pools_of_few_long_rows_mislead_and_counting_does_not(data: RunData) -> None:
    """By hand: a step of four rows has a long one with probability 1 - (39 / 40)^4."""
    arm = arms()["plain_small"]
    share = 1 - (39 / 40) ** 4
    truth = 4 * (LONG * share + 4 * (1 - share))
    few = [time_arm(arm, data, random.Random(n).sample(range(480), 16), "cpu", n)["positions"][0] for n in range(9)]
    assert max(few) > 1.5 * min(few)
    line = count_positions(arm, data, steps=200, least=4)
    assert line["positions"][0] == pytest.approx(truth, rel=0.05)
    assert line["error"] < 0.03


def test_rows_that_training_decides_on_are_not_counted_without_it() -> None:
    block = {"pool_factor": 1, "sampling": {"learnt": "infobatch"}}
    assert not may_be_counted(make_arms([], {}, CoresetConfig.from_dict(block), block, {})[0])


# ---- runs against their plan ------------------------------------------------------------------------------------


def compared(folder: Path, shares: dict[str, float], spread: float = 0.2, error: float | None = 0.01) -> Comparison:
    """A comparison whose runs had so many times the positions of its plan."""
    plan, lines = make_plan(), make_lines(make_plan())
    for arm in plan["arms"]:
        arm |= {"positions": 1000.0 * arm["steps"], "positions_spread": spread, "seconds_error": error}
        for line in lines:
            if line["arm"] == arm["arm"]:
                line["positions"] = round(1000 * arm["steps"] * shares.get(arm["arm"], 1.0))
    return read_comparison(write_comparison(folder, plan, lines))


def test_runs_with_other_positions_than_they_were_timed_by_are_in_no_verdict(tmp_path: Path) -> None:
    found = compared(tmp_path, {PLAIN: 1.56, STEPS: 1.56})
    marks = {(mark.arm, mark.seed, mark.kind, mark.excludes) for mark in found.marks}
    assert marks == {(PLAIN, seed, "positions", True) for seed in (1, 2, 3, 4, 5)}, "equal steps stay equal"
    text = found.marks[0].text
    assert "1,560 positions a step, its steps were planned by 1,000 (1.56 times as many beside the reference's)" in text
    assert "not at equal wall-clock. Raise compare.timing_pools" in text
    assert {test.baseline: test.n for test in paired_tests(found, LOSSES[0])}[PLAIN] == 0


def test_fewer_positions_count_as_well_as_more(tmp_path: Path) -> None:
    assert {mark.arm for mark in compared(tmp_path, {PLAIN: 0.8}).marks} == {PLAIN}


def test_what_all_arms_have_more_of_is_noted_with_the_reference_alone(tmp_path: Path) -> None:
    plan = make_plan()
    found = compared(tmp_path, {arm["arm"]: 1.3 for arm in plan["arms"]})
    assert {(mark.arm, mark.kind, mark.excludes) for mark in found.marks} == {(CORESET, "positions", False)}
    assert len(found.comparable) == len(found.runs)


def test_short_runs_may_differ_by_chance(tmp_path: Path) -> None:
    """60 steps with 5 seeds and a spread of 1.2: one standard error is 7 %, with the reference's 11 %."""
    assert compared(tmp_path, {PLAIN: 1.25}, spread=1.2).marks == ()
    assert compared(tmp_path / "more", {PLAIN: 1.25}, spread=0.2).marks != ()


def test_a_run_that_is_left_out_for_another_reason_accuses_no_other(tmp_path: Path) -> None:
    plan, lines = make_plan(), make_lines(make_plan())
    for arm in plan["arms"]:
        arm |= {"positions": 1000.0 * arm["steps"], "positions_spread": 0.2}
    for line in lines:
        line["positions"] = 1000 * line["steps"]
    lines = change(lines, PLAIN, 3, lambda line: line.update(positions=10**6, rows_trained=10**6))
    found = read_comparison(write_comparison(tmp_path, plan, lines))
    assert {(mark.arm, mark.seed) for mark in found.marks if mark.excludes} == {(PLAIN, 3)}


def test_seconds_that_are_not_known_are_noted(tmp_path: Path) -> None:
    found = compared(tmp_path, {}, error=0.05)
    assert {(mark.kind, mark.excludes) for mark in found.marks} == {("uncertain", False)}
    assert all(mark.arm.endswith("@wall_clock") for mark in found.marks)
    assert "have a standard error of 5.0%, wanted is 3%" in found.marks[0].text
    assert compared(tmp_path / "none", {}, error=None).marks == (), "plans of before say nothing of it"
