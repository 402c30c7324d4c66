"""Budgets: what a step costs, how many steps are affordable, what is tuned for how long."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from corebatch.batch.cuts import Cut
from corebatch.bench.runs.arms import METHODS, make_arms
from corebatch.bench.runs.costs import StepCost, flop_counter, side_by_side, step_means
from corebatch.bench.runs.from_config import split_rows
from corebatch.bench.runs.jobs import Workplace
from corebatch.bench.runs.rehearsals import _rehearsal
from corebatch.bench.runs.settings import CompareSettings, TuneSettings
from corebatch.bench.runs.training_run import points
from corebatch.bench.runs.tuning import candidates, rungs
from corebatch.errors import ConfigError
from corebatch.trainer import CoresetConfig

costs = st.builds(
    StepCost,
    first=st.floats(0.01, 100),
    later=st.floats(0.01, 100),
    epoch=st.floats(0.5, 200),
    before=st.just(0.0) | st.floats(0, 100),
)


@given(cost=costs, budget=st.floats(0.01, 10_000))
def test_a_budget_is_spent_and_never_overdrawn(cost: StepCost, budget: float) -> None:
    steps = cost.affords(budget)
    assert cost.of(steps) <= budget * (1 + 1e-9) or (steps == 0 and cost.before > budget)
    assert cost.of(steps + 1) > budget * (1 - 1e-6)


@given(cost=costs, steps=st.integers(0, 1000))
def test_the_reference_affords_its_own_steps(cost: StepCost, steps: int) -> None:
    assert cost.affords(cost.of(steps)) == steps


def test_ratios_are_taken_within_a_round() -> None:
    """The machine is three times as slow in the second round and nobody's ratio changes."""
    lines = [
        {"round": number, "method": method, "seconds": [slow * first, slow * later]}
        for number, slow in enumerate((1.0, 3.0, 1.0))
        for method, first, later in (("coreset", 2.0, 1.0), ("plain_small", 0.75, 0.75))
    ]
    found = side_by_side(lines, "coreset", {})
    assert found["coreset"] == pytest.approx((2.0, 1.0, 0.0))
    assert found["plain_small"] == pytest.approx((0.75, 0.75, 0.0))


@pytest.mark.parametrize(
    ("step", "rows", "found"),
    [(16, 400, 96), (32, 400, 96), (64, 400, 128), (24, 400, 96), (64, 100, 64), (64, 40, 32), (8, 20, 16)],
)
def test_an_arm_is_timed_on_whole_steps_of_its_own(step: int, rows: int, found: int) -> None:
    """Three large batches of 32 rows, or as many more as fill its last step, where there are so many."""
    place = Workplace.__new__(Workplace)
    place.rows_drawn = 32
    place.methods = {"mine": SimpleNamespace(rows_drawn=step)}  # type: ignore[dict-item]  # what is read of an arm
    train = Dataset.from_dict({"source": ["a"] * rows})
    place.data_of = lambda method: SimpleNamespace(train=train)  # type: ignore[assignment,method-assign,return-value]
    chosen = place.rehearsal_rows(3, "mine")
    assert len(chosen) == len(set(chosen)) == found


def test_seconds_of_a_step_leave_the_first_out() -> None:
    seconds = [2.0, 2.0, 1.0, 1.0, 1.0]  # two passes of three steps, without the first
    assert step_means(seconds, epoch=3, remembers=True) == (2.0, 1.0)
    assert step_means(seconds, epoch=3, remembers=False) == (1.4, 1.4)


def test_flops_of_matrix_products_and_attention() -> None:
    """A product of [5, 7] and [7, 11] has 2 x 5 x 7 x 11; attention [2, 3, 4, 8] on itself two of 2 x 6 x 4 x 4 x 8."""
    with flop_counter() as counter:
        torch.ones(5, 7) @ torch.ones(7, 11)
    assert counter.get_total_flops() == 770
    query = torch.ones(2, 3, 4, 8, requires_grad=True)
    with flop_counter() as counter:
        out = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert counter.get_total_flops() == 2 * 2 * 6 * 4 * 4 * 8
    with flop_counter() as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 5 * 2 * 6 * 4 * 4 * 8


@given(count=st.integers(1, 20), steps=st.integers(1, 500), shortest=st.floats(0.05, 1))
def test_successive_halving(count: int, steps: int, shortest: float) -> None:
    found = rungs(count, steps, shortest)
    sizes, lengths = [c for c, _ in found], [n for _, n in found]
    assert sizes == sorted(sizes, reverse=True)
    assert lengths == sorted(lengths)
    assert all(1 <= n <= steps for n in lengths)
    if count > 1:
        assert sizes[0] == count
        assert lengths[0] == math.ceil(steps * shortest)
        assert sizes[-1] <= 2 or lengths[-1] == steps  # one is left, or those that are left had the whole length
    else:
        assert found == []


def test_the_grid_is_around_the_configs_own_rate() -> None:
    grid = candidates(TuneSettings(factors=(0.5, 2.0), adam_beta2=(0.9, 0.99)), 1e-3)
    assert [(c.learning_rate, c.adam_beta2) for c in grid] == [(5e-4, 0.9), (5e-4, 0.99), (2e-3, 0.9), (2e-3, 0.99)]
    assert [c.learning_rate for c in candidates(TuneSettings(learning_rates=(3e-4,)), 1e-3)] == [3e-4]
    assert len(candidates(TuneSettings(enabled=False), 1e-3)) == 1


def test_arms_draw_and_train_what_they_say() -> None:
    training = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    block = {"pool_factor": 4, "selector": "pivotal"}
    arms = make_arms(
        ["plain_large", "plain_small@flops", "colm", "hard"],
        {"mine": {"coreset": {"pool_factor": 2}, "training": {"gradient_accumulation_steps": 1}}},
        CoresetConfig.from_dict(block),
        block,
        training,
    )
    rows = {arm.name: (arm.rows_drawn, arm.rows_trained) for arm in arms}
    assert rows == {
        "coreset@wall_clock": (32, 8),
        "plain_large@wall_clock": (32, 32),
        "plain_small@flops": (8, 8),
        "colm@wall_clock": (32, 8),
        "hard@wall_clock": (32, 8),
        "mine@wall_clock": (8, 4),
    }
    by_name = {arm.name: arm.coreset for arm in arms}
    assert by_name["coreset@wall_clock"].selector == "pivotal"
    assert by_name["mine@wall_clock"].selector == "pivotal"  # the config's own, where nothing else is said
    assert by_name["colm@wall_clock"].scorer == "zeroth_order"
    assert by_name["hard@wall_clock"].selector == "hard"
    assert {name for name, method in METHODS.items() if method.baseline} == {
        *("plain_large", "plain_small", "plain_large_sorted", "plain_sorted", "random", "tokens_importance"),
        *("plain_weighted", "plain_weighted_sorted", "plain_sources", "plain_sources_sorted"),
    }


TWO = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    "micro_batches, cut",
    [
        ("auto", Cut(by="positions")),
        ("plain", Cut(by="positions")),
        ("length", Cut(by="length")),
        ({"by": "flops", "most": 512}, Cut(by="flops", most=512)),
    ],
)
def test_sorted_arms_are_cut_as_the_chosen_batch_is_and_plain_ones_are_not(micro_batches: Any, cut: Cut) -> None:
    block = {"pool_factor": 4, "micro_batches": micro_batches}
    wanted = ["plain_large", "plain_small", "plain_large_sorted", "plain_sorted@flops", "random"]
    arms = {arm.method.name: arm for arm in make_arms(wanted, {}, CoresetConfig.from_dict(block), block, TWO)}
    assert [arms[name].rows_drawn for name in ("plain_large_sorted", "plain_sorted")] == [32, 8]
    for name in ("plain_large_sorted", "plain_sorted"):
        assert (arms[name].coreset.pool_factor, arms[name].coreset.cut) == (1, cut)
        assert (arms[name].rows_trained, arms[name].method.baseline) == (arms[name].rows_drawn, True)
    assert not any(arms[name].coreset.takes_part for name in ("plain_large", "plain_small"))
    assert arms["random"].coreset.cut == arms["coreset"].coreset.cut


def test_one_micro_batch_has_nothing_to_sort_and_is_trained_once() -> None:
    block: dict[str, Any] = {"pool_factor": 4}
    once = {**TWO, "gradient_accumulation_steps": 1}
    wanted = ["plain_large_sorted", "plain_small", "plain_sorted", "plain_sorted@steps"]
    arms = make_arms(wanted, {}, CoresetConfig(pool_factor=4), block, once)
    names = ["coreset@wall_clock", "plain_large_sorted@wall_clock", "plain_small@wall_clock", "plain_small@steps"]
    assert [arm.name for arm in arms] == names
    assert "sorted it is the same: one micro-batch a step" in arms[-1].method.title
    block["micro_batches"] = {"most": 64}  # a cap may cut it nonetheless
    arms = make_arms(["plain_sorted"], {}, CoresetConfig.from_dict(block), block, once)
    assert [arm.name for arm in arms] == ["coreset@wall_clock", "plain_sorted@wall_clock"]


def test_a_large_arm_of_the_users_own_is_plain() -> None:
    extra: dict[str, Any] = {"mine": {"large": True, "coreset": {"micro_batches": "length"}}}
    (_, arm) = make_arms([], extra, CoresetConfig(pool_factor=4), {"pool_factor": 4, "selector": "pivotal"}, TWO)
    assert (arm.rows_trained, arm.coreset.pool_factor, arm.coreset.cut) == (32, 1, Cut(by="length"))
    extra["mine"]["coreset"]["selector"] = "random"
    with pytest.raises(ConfigError, match=r"mine trains the whole large batch.*Found 'selector'"):
        make_arms([], extra, CoresetConfig(pool_factor=4), {}, TWO)


def test_every_arm_is_timed_on_as_many_trained_rows() -> None:
    block = {"pool_factor": 4}
    arms = make_arms(
        ["plain_large", "plain_small", "colm"],
        {},
        CoresetConfig(pool_factor=4),
        block,
        {"per_device_train_batch_size": 8},
    )
    rows = range(6 * 32)
    assert {_rehearsal(arm, rows)[0] * arm.rows_trained for arm in arms} == {6 * 32}
    assert [_rehearsal(arm, rows)[1] for arm in arms] == [6, 6, 24, 6]


def test_held_out_rows_for_tuning_are_apart_and_a_share_of_each_source() -> None:
    sources = ["a"] * 90 + ["b"] * 9 + ["c"]
    tune, final = split_rows(sources, 1 / 3)
    assert sorted(tune + final) == list(range(100))
    assert [sum(sources[n] == name for n in tune) for name in "abc"] == [30, 3, 0]
    assert split_rows(sources, 1 / 3) == (tune, final)


def test_points_of_a_curve_end_with_the_last_step() -> None:
    assert points(10, 4) == [2, 5, 8, 10]
    assert points(3, 8) == [1, 2, 3]


def test_seeds_as_a_number_or_a_list() -> None:
    assert CompareSettings.from_dict({"seeds": 3}).seeds == (1, 2, 3)
    assert CompareSettings.from_dict({"seeds": [7, 9]}).seeds == (7, 9)
    assert CompareSettings.from_dict(None).tune.seed == 0
