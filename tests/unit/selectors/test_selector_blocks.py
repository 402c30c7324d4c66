"""Many rows: blocks are what they should be, samplers stay unbiased, and memory does not grow with N^2."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from corebatch.errors import CorebatchError
from corebatch.selectors import SELECTORS, Selector, make_selector
from corebatch.selectors.kernels import blocks
from corebatch.selectors.kernels.inclusion import inclusion_probabilities
from corebatch.selectors.kernels.medoids import Cover, merged_greedy
from corebatch.types import Selection, SourceGroup


def _normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _clustered(clusters: int = 12, each: int = 20) -> Tensor:
    return _normal(clusters, 6).repeat(each, 1) + 0.05 * _normal(clusters * each, 6, seed=1)


def _choose(name: str | Selector, features: Tensor, budget: int, seed: int = 0) -> Selection:
    selector = make_selector(name)
    given = {"losses": features[:, 0].clone(), "validation": features[:3]}
    return selector.select(features, budget, torch.Generator().manual_seed(seed), **given)  # type: ignore[arg-type]


def _error(name: str | Selector, features: Tensor, budget: int, draws: int = 40) -> float:
    """The mean squared error of the weighted mean."""
    errors = []
    for seed in range(draws):
        chosen = _choose(name, features, budget, seed)
        mean = (chosen.weights.double()[:, None] * features[chosen.indices]).mean(0)
        errors.append(float((mean - features.mean(0)).square().sum()))
    return sum(errors) / draws


# Blocks


@pytest.mark.parametrize("make", [lambda f, most: blocks.near(f, most), lambda f, most: blocks.dealt(f)])
@pytest.mark.parametrize("features", [_normal(103, 4), torch.zeros(103, 4), _normal(1, 4).repeat(103, 1)])
def test_blocks_are_a_partition_of_even_sizes(make, features: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 10)
    parts = make(features, 10)
    assert len(parts) == 11
    assert sorted(torch.cat(parts).tolist()) == list(range(103))
    assert {len(block) for block in parts} <= {9, 10}
    assert all(block.tolist() == sorted(block.tolist()) for block in parts)


@pytest.mark.parametrize("make", [blocks.near, blocks.dealt])
def test_blocks_do_not_depend_on_the_order_of_rows(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 10)
    features, order = _normal(60, 4), torch.randperm(60, generator=torch.Generator().manual_seed(3))
    one, other = make(features), make(features[order])
    assert [block.tolist() for block in one] == [sorted(order[block].tolist()) for block in other]


def test_near_blocks_are_near_and_dealt_ones_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 30)
    features = _clustered()
    inside = [float(features[block].var(0).sum()) for block in blocks.near(features)]
    means = torch.stack([features[block].mean(0) for block in blocks.dealt(features)])
    assert sum(inside) / len(inside) < 0.5 * float(features.var(0).sum())
    assert float(means.var(0).sum()) < 0.2 * float(features.var(0).sum())


def test_few_rows_are_one_block() -> None:
    assert [len(block) for block in blocks.near(_normal(2 * blocks.BLOCK, 2))] == [2 * blocks.BLOCK]
    assert len(blocks.dealt(_normal(2 * blocks.BLOCK + 1, 2))) == 3


@pytest.mark.parametrize("budget", [0, 1, 7, 29, 30])
def test_shares_add_up_and_fit(budget: int) -> None:
    sizes = [5, 9, 1, 15]
    shares = blocks.shares(sizes, budget)
    assert sum(shares) == budget
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))


# Samplers


@pytest.mark.parametrize("name", ["pivotal", "gram_schmidt_walk"])
@pytest.mark.parametrize(("block", "budget"), [(2, 7), (4, 1), (4, 15)])
def test_samplers_meet_every_probability_in_blocks(
    name: str, block: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of what the blocks leave undecided, which with blocks of two rows is many, and blocks again."""
    monkeypatch.setattr(blocks, "BLOCK", block)
    features, draws = _normal(24, 5) * torch.linspace(0.1, 3.0, 24)[:, None], 500
    inclusion = inclusion_probabilities(features, budget, 0.1)
    times = torch.zeros(24, dtype=torch.float64)
    for seed in range(draws):
        chosen = _choose(name, features, budget, seed)
        times[chosen.indices] += 1
        torch.testing.assert_close(chosen.weights, (budget / (24 * inclusion[chosen.indices])).float())
    error = (inclusion * (1 - inclusion) / draws).sqrt()
    assert bool(((times / draws - inclusion).abs() <= 4.5 * error + 1e-12).all())


@pytest.mark.parametrize(("name", "share"), [("pivotal", 0.4), ("gram_schmidt_walk", 0.4), ("balanced", 0.05)])
def test_blocks_still_spread_and_balance(name: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 40)
    features = _clustered()
    assert _error(name, features, 60) < share * _error("importance", features, 60)


def test_swaps_make_up_for_the_blocks_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that each met their own mean alone would be off by all their errors together."""
    features = _normal(240, 40)
    whole = _error("balanced", features, 60)
    monkeypatch.setattr(blocks, "BLOCK", 60)
    assert _error("balanced", features, 60) < 2.5 * whole


def test_calibration_in_parts_is_nearer_to_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    features = _normal(300, 12)
    alone, moved = SELECTORS["importance"](), SELECTORS["importance"](calibrate=True)
    whole = _error(moved, features, 90)
    monkeypatch.setattr(blocks, "BLOCK", 30)
    assert _error(moved, features, 90) < 0.2 * _error(alone, features, 90)
    assert _error(moved, features, 90) < 10 * whole


# Greedy ones


@pytest.mark.parametrize("few", [0, 512])
def test_herding_meets_the_mean_over_all_blocks(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features = _normal(240, 5)
    monkeypatch.setattr(blocks, "BLOCK", 40)
    monkeypatch.setattr(blocks, "FEW", few)
    assert _error("herding", features, 60, draws=1) < 0.02 * _error("random", features, 60)


@pytest.mark.parametrize("name", ["herding", "greats", "gradient_matching"])
def test_few_choices_from_many_rows_are_those_from_all_pairs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = _normal(200, 12)
    expected = _choose(make_selector(name, {"interaction": 0.0} if name == "greats" else {}), features, 20)
    monkeypatch.setattr(blocks, "BLOCK", 30)
    found = _choose(make_selector(name, {"interaction": 0.0} if name == "greats" else {}), features, 20)
    assert found.indices.tolist() == expected.indices.tolist()
    torch.testing.assert_close(found.weights, expected.weights)


@pytest.mark.parametrize("interaction", [0.0, 1.0])
def test_greats_in_blocks_follows_the_validation_gradient(interaction: float, monkeypatch: pytest.MonkeyPatch) -> None:
    features = _normal(240, 12)
    score = features @ features[:3].mean(0)
    whole = _choose(SELECTORS["greats"](interaction=interaction), features, 60)
    monkeypatch.setattr(blocks, "BLOCK", 40)
    monkeypatch.setattr(blocks, "FEW", 0)
    found = _choose(SELECTORS["greats"](interaction=interaction), features, 60)
    assert float(score[found.indices].mean()) > 0.8 * float(score[whole.indices].mean())


def _objective(features: Tensor, chosen: Selection) -> float:
    """The total distance from every row to the nearest that was chosen."""
    return float(torch.cdist(features, features[chosen.indices], p=1.0).min(dim=1).values.sum())


@pytest.mark.parametrize("name", ["facility_location", "k_medoids", "craig"])
@pytest.mark.parametrize("budget", [3, 12, 60, 100, 150])
def test_medoids_in_blocks_represent_nearly_as_well(name: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among winners below a budget of 80, in blocks alone above."""
    features = _clustered()
    whole = _objective(features, _choose(name, features, budget))
    monkeypatch.setattr(blocks, "BLOCK", 40)
    chosen = _choose(name, features, budget)
    assert _objective(features, chosen) < 1.15 * whole
    if name == "craig":
        assert float(chosen.weights.double().mean()) == pytest.approx(1.0)


def test_merged_greedy_is_the_greedy_of_problems_that_do_not_help_each_other() -> None:
    features = _clustered(4, 10)
    parts = [Cover.of(features, rows, "l1") for rows in blocks.near(features, 10)]
    apart = np.full((40, 40), 0.0)
    largest = max(part.largest for part in parts)
    for part in parts:
        apart[np.ix_(part.rows, part.rows)] = part.similarities_CC + (largest - part.largest)
    places, gains = merged_greedy(parts, 17)
    chosen = sorted(int(part.rows[k]) for part, some in zip(parts, places, strict=True) for k in some)
    covered = apart[chosen].max(axis=0).sum()
    assert sum(float(each.sum()) for each in gains) == pytest.approx(covered, rel=1e-5)
    best = np.zeros(40)
    for _ in range(17):  # the naive greedy on the matrix with zeros between problems
        best = np.maximum(best, apart[np.maximum(apart - best, 0.0).sum(axis=1).argmax()])
    assert covered == pytest.approx(best.sum(), rel=1e-5)


def test_joint_medoids_keep_their_budgets_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 40)
    features = _clustered()
    ids = torch.arange(240) % 3
    groups = [
        SourceGroup(name=str(g), members=(ids == g).nonzero().flatten(), budget=budget)
        for g, budget in enumerate((1, 20, 40))
    ]
    chosen = SELECTORS["facility_location"](joint=True).select(features, 61, groups=groups)
    assert torch.bincount(ids[chosen.indices]).tolist() == [1, 20, 40]


# Time and memory

MEASURE = """
import json, resource, sys, time, torch
from corebatch.selectors import SELECTORS, make_selector
torch.set_num_threads(1)
features = torch.empty(5000, 96).normal_(generator=torch.Generator().manual_seed(0))
given = {"losses": features[:, 0].clone(), "validation": features[:2]}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for name in SELECTORS:
    few = {key: value[:64] for key, value in given.items()}
    make_selector(name).select(features[:64], 8, **few)
for name in SELECTORS:
    for budget in (300, 1250, 4200):
        before, start = peak(), time.process_time()
        chosen = make_selector(name).select(features, budget, **given)
        assert len(chosen) == budget
        print(json.dumps([name, budget, peak() - before, time.process_time() - start]), flush=True)
"""


def test_memory_and_time_are_bounded() -> None:
    """One matrix of all pairs would be 200 MB in float64; times are generous, since the machine may be busy."""
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert {line[0] for line in lines} == set(SELECTORS)
    assert sum(line[2] for line in lines) < 350, lines
    assert max(line[3] for line in lines) < 60, lines


def test_features_that_are_not_finite_are_an_error_for_many_rows_too() -> None:
    features = torch.zeros(2 * blocks.BLOCK + 2, 2)
    features[17, 1] = torch.nan
    with pytest.raises(CorebatchError, match="17"):
        _choose("cube", features, 5)
