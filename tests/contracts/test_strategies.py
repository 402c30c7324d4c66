"""What every way of scoring must do, whatever it does. A new strategy in `STRATEGIES` is found here."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from corebatch.batch.plan import Plan
from corebatch.batch.pool import Pool
from corebatch.batch.scoring import Scoring
from corebatch.batch.strategies import OPTIONS, STRATEGIES, Strategy, make_strategy, shortest
from corebatch.batch.strategies.options import option_names
from corebatch.errors import ConfigError
from corebatch.scoring import Scores
from corebatch.trainer import CoresetConfig, ScoringConfig

N, M, DRAWS = 24, 6, 300
DOCS = Path(__file__).parents[2] / "docs" / "methods" / "scoring.md"
SUPPOSED = {"age", "known", "visits", "cost"}

GENERATOR = torch.Generator().manual_seed(2)
TOKENS = torch.randint(1, 40, (N,), generator=GENERATOR)
FEATURES = torch.randn(N, 5, generator=GENERATOR) * TOKENS.sqrt().unsqueeze(1)
VALUES = torch.stack([torch.randn(N, generator=GENERATOR) + 2, FEATURES.norm(dim=1), torch.ones(N)], dim=1).double()
"""Of which means are estimated; that of the ones is the mean of the weights."""

EVERY = pytest.mark.parametrize("way", STRATEGIES)
RESOLVED = pytest.mark.parametrize("way", [way for way, kind in STRATEGIES.items() if not kind.stands_for_another])


def pool(eligible: Tensor | None = None) -> Pool:
    ids = torch.arange(N) * 3 + 1
    return Pool(
        ids=ids, sources=ids % 2, lengths=TOKENS + 2, tokens=TOKENS, ranks=torch.zeros_like(ids),
        rows=torch.arange(N), batches=torch.zeros_like(ids), widths=TOKENS + 2,
        eligible=torch.ones(N, dtype=torch.bool) if eligible is None else eligible,
    )  # fmt: skip


def scores_of(rows: Tensor) -> Scores | None:
    if not len(rows):
        return None
    return Scores(features=FEATURES[rows], losses=FEATURES[rows].norm(dim=1), tokens=TOKENS[rows])


def scoring(way: str, seed: int = 0) -> Scoring:
    """With a memory of every other row, where there is one."""
    config = CoresetConfig(scoring=way, selector="importance", pool_factor=4, seed=seed)
    made = Scoring(config.resolve_scoring(False), config.build(), loss=config.loss, micro_batch=4)
    known = torch.arange(0, N, 2)
    made.remember(pool(), Plan(candidates=torch.arange(N), budget=M, exact=known), scores_of(known), 0)
    return made


def same(one: Any, other: Any) -> bool:
    """Of plans and of what is in them."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if dataclasses.is_dataclass(one):
        fields = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in fields)
    return bool(one == other)


# ---- settings --------------------------------------------------------------------------------------------------------


@EVERY
def test_it_is_called_what_its_key_is(way: str) -> None:
    made = make_strategy(way)
    assert isinstance(made, STRATEGIES[way])
    assert made.way == way
    assert shortest(made) == way
    assert made == make_strategy({"way": way}) == make_strategy(made) == ScoringConfig(way=way)
    assert "rows" in option_names(type(made))


@EVERY
def test_options_that_it_does_not_take_are_refused_by_name(way: str) -> None:
    with pytest.raises(ConfigError, match="no_such_option"):
        CoresetConfig(scoring={"way": way, "no_such_option": 1})
    with pytest.raises(TypeError, match="no_such_option"):
        STRATEGIES[way](no_such_option=1)  # type: ignore[call-arg]
    for name in set(OPTIONS) - set(option_names(STRATEGIES[way])):
        with pytest.raises(ConfigError, match=name):
            CoresetConfig(scoring={"way": way, name: object()})
        assert CoresetConfig(scoring={"way": way, name: OPTIONS[name].default}).scoring_settings == make_strategy(way)


@EVERY
def test_values_out_of_range_are_refused_by_name(way: str) -> None:
    for name in option_names(STRATEGIES[way]):
        for make in (lambda given: make_strategy({"way": way, **given}), lambda given: STRATEGIES[way](**given)):
            with pytest.raises(ConfigError, match=rf"coreset\.scoring\.{name} should be .*Found"):
                make({name: object()})


@EVERY
def test_it_cannot_be_changed(way: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_strategy(way).rows = 3  # type: ignore[misc]


@EVERY
def test_it_is_on_the_page_of_ways(way: str) -> None:
    assert f"\n| `{way}` |" in DOCS.read_text()


@EVERY
def test_what_stands_for_another_ends_as_one_that_does_not(way: str) -> None:
    made = make_strategy(way)
    for again in (False, True):
        for fits in (False, True):
            found = made.resolve(again, lambda strategy, fits=fits: fits)  # type: ignore[misc]
            assert not found.stands_for_another
            assert found is made or made.stands_for_another


# ---- prices ----------------------------------------------------------------------------------------------------------


@EVERY
def test_it_says_what_it_costs(way: str) -> None:
    made = make_strategy(way)
    for scored in (0.0, 0.4, 1.0):
        price = made.price({}, scored)
        assert math.isfinite(price)
        assert 0 <= price <= 1
    assert set(made.step_options) <= set(option_names(type(made))) - {"rows"}
    assert set(made.supposed) <= SUPPOSED
    assert made.period is None or made.period >= 1
    assert made.remembers or not made.learns


# ---- a step ----------------------------------------------------------------------------------------------------------


@RESOLVED
def test_a_plan_is_of_rows_that_may_be_chosen(way: str) -> None:
    eligible = torch.ones(N, dtype=torch.bool)
    eligible[[3, 8]] = False
    for step in range(1, 6):
        plan = scoring(way).plan(pool(eligible), M, step)
        assert plan.candidates.tolist() == eligible.nonzero().flatten().tolist()
        assert set(plan.exact.tolist()) <= set(plan.candidates.tolist())
        assert plan.exact.tolist() == sorted(set(plan.exact.tolist()))
        assert plan.budget == M


@RESOLVED
def test_the_same_seed_and_step_are_the_same_plan_and_choice(way: str) -> None:
    one, other = scoring(way), scoring(way)
    state = torch.get_rng_state()
    for step in range(1, 6):
        plans = [made.plan(pool(), M, step) for made in (one, other)]
        assert same(*plans)
        scores = scores_of(plans[0].exact)
        choices = [made.choose(pool(), plans[0], scores, step, None).selection for made in (one, other)]
        assert same(*choices)
    assert torch.equal(torch.get_rng_state(), state)


@RESOLVED
@pytest.mark.parametrize("budget", [2, M])
def test_weights_estimate_the_pools_mean(way: str, budget: int) -> None:
    """Within four standard errors over draws, and the rounding of weights in float32."""
    made, found = scoring(way), []
    for step in range(1, DRAWS + 1):
        plan = made.plan(pool(), budget, step)
        selection = made.choose(pool(), plan, scores_of(plan.exact), step, None).selection
        assert len(selection) == budget
        found.append(selection.weights.double() @ VALUES[selection.indices] / budget)
    draws = torch.stack(found)
    bias = (draws.mean(dim=0) - VALUES.mean(dim=0)).abs()
    assert bool((bias <= 4 * draws.std(dim=0) / DRAWS**0.5 + 1e-6).all()), bias


@RESOLVED
def test_a_budget_of_all_takes_all(way: str) -> None:
    made = scoring(way)
    plan = made.plan(pool(), N, 1)
    selection = made.choose(pool(), plan, scores_of(plan.exact), 1, None).selection
    assert selection.indices.tolist() == list(range(N))
    assert selection.weights.tolist() == [1.0] * N


@RESOLVED
def test_what_forwards_see_is_part_of_a_row(way: str) -> None:
    made: Strategy = make_strategy(way)
    row = {"input_ids": torch.arange(200), "labels": torch.arange(200), "attention_mask": torch.ones(200)}
    seen = made.shorten(row)
    assert seen.keys() == row.keys()
    assert [len(seen["input_ids"])] == made.lengths(torch.tensor([200])).tolist()
    scale = made.scale([seen, seen], torch.tensor([199, 199]), "token_mean")
    assert scale is None or (scale.shape == (2,) and bool((scale > 0).all()))
