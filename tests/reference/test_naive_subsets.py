"""Subset methods keep what their slow twins keep."""

from __future__ import annotations

import naive_subsets as naive
import numpy as np
import pytest
import torch

from corebatch.errors import ConfigError, InputError
from corebatch.seeds import seeded
from corebatch.selectors.balanced import balance
from corebatch.selectors.kernels.inclusion import expansion_weights, inclusion_probabilities, systematic_sample
from corebatch.subset import keep_rows


def _scores(kind, count=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if kind == "few values":
        return torch.randint(7, (count,), generator=generator).double()
    normal = torch.randn(count, generator=generator, dtype=torch.float64)
    return normal.exp() if kind == "long tail" else normal.abs()


@pytest.mark.parametrize("kind", ["normal", "long tail", "few values"])
@pytest.mark.parametrize("keep, hardest, strata", [(0.1, 0.3, 50), (0.3, 0.0, 50), (0.5, 0.1, 7), (0.1, None, 50)])
def test_ccs(kind, keep, hardest, strata):
    scores = _scores(kind)
    found = keep_rows(400, keep, "ccs", options={"hardest": hardest, "strata": strata}, scores=scores, seed=5)
    dropped = int(0.3 * 400) if hardest is None else int(hardest * 400)
    wanted = naive.ccs(scores.tolist(), round(keep * 400), dropped, strata, seeded(5, "subset"))
    assert found.rows.tolist() == wanted
    assert sum(found.told["kept_of_strata"]) == len(wanted)
    assert found.told["dropped_as_hardest"] == dropped


def test_ccs_of_negative_scores_has_the_highest_in_a_stratum():
    scores = -torch.arange(1.0, 201, dtype=torch.float64)
    kept = keep_rows(200, 0.5, "ccs", options={"hardest": 0.0, "strata": 10}, scores=scores)
    assert sum(kept.told["rows_of_strata"]) == 200
    assert kept.told["kept_of_strata"] == [10] * 10


def test_ccs_says_what_is_too_few():
    with pytest.raises(InputError, match=r"at least the 3 to be kept and the 50 strata\. Found 21"):
        keep_rows(30, 0.1, "ccs", scores=torch.rand(30))
    with pytest.raises(InputError, match="smaller `hardest`"):
        keep_rows(100, 0.8, "ccs", options={"hardest": 0.3}, scores=torch.rand(100))
    with pytest.raises(ConfigError, match="`hardest`"):
        keep_rows(100, 0.8, "ccs", options={"hardest": 1.5}, scores=torch.rand(100))


@pytest.mark.parametrize("part", ["hard", "easy", "middle"])
@pytest.mark.parametrize("by_source", [False, True])
def test_difficulty(part, by_source):
    scores, sources = _scores("few values", 90), torch.arange(90) % 3
    found = keep_rows(
        90, 1 / 3, "difficulty", options={"part": part, "by_source": by_source}, scores=scores, sources=sources
    )
    wanted = []
    for group in ([0], [1], [2]) if by_source else ([0, 1, 2],):
        rows = [row for row in range(90) if int(sources[row]) in group]
        rows.sort(key=lambda row: (float(scores[row]) if part == "easy" else -float(scores[row]), row))
        start = len(rows) // 3 if part == "middle" else 0
        wanted += rows[start : start + len(rows) // 3]
    assert found.rows.tolist() == sorted(wanted)
    assert found.told["lowest_score"] == float(scores[wanted].min())


@pytest.mark.parametrize("metric, p", [("l1", 1), ("l2", 2), ("cosine", None)])
def test_facility_location_of_few_rows_is_the_greedy(metric, p):
    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)).double()
    unit = torch.nn.functional.normalize(features)
    distances = (1 - unit @ unit.T if p is None else torch.cdist(features, features, p=float(p))).numpy()
    found = keep_rows(40, 0.2, "facility_location", options={"metric": metric}, features=features)
    assert found.rows.tolist() == naive.facility_location(distances, 8)


def test_cluster_sizes_are_how_many_each_stands_for():
    features = torch.cat([torch.zeros(30, 2) + torch.tensor([9.0, 0]), torch.zeros(10, 2) + torch.tensor([0, 9.0])])
    options = {"metric": "l2", "weights": "cluster_size"}
    found = keep_rows(40, 0.05, "facility_location", options=options, features=features)
    assert found.rows.tolist() == [0, 30]
    assert found.ones.tolist() == [1.5, 0.5]


@pytest.mark.parametrize("keep", [0.01, 0.2])  # through winners, and in blocks alone
def test_facility_location_in_blocks_is_nearly_the_greedy_of_all(keep, monkeypatch):
    generator = torch.Generator().manual_seed(2)
    centres = torch.randn(25, 8, generator=generator) * 3
    features = centres[torch.randint(25, (2000,), generator=generator)] + torch.randn(2000, 8, generator=generator)
    monkeypatch.setattr("corebatch.subset.facility_location._WINNERS", (100, 200))
    whole, blocks = (
        keep_rows(2000, keep, "facility_location", options={"metric": "l2", "block": size}, features=features).rows
        for size in (1000, 100)
    )
    chance = keep_rows(2000, keep, "random").rows
    distances = torch.cdist(features, features).numpy()
    best, found, plain = (naive.covered(distances, rows.tolist()) for rows in (whole, blocks, chance))
    assert found - plain > 0.75 * (best - plain)


def test_cluster_sizes_of_blocks_sum_to_all_rows(monkeypatch):
    features = torch.randn(1000, 4, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr("corebatch.subset.facility_location._WINNERS", (100, 200))
    for keep in (0.02, 0.3):
        options = {"weights": "cluster_size", "block": 50}
        kept = keep_rows(1000, keep, "facility_location", options=options, features=features)
        sizes = kept.ones * 1000 / len(kept.rows)
        assert float(sizes.sum()) == pytest.approx(1000)
        assert torch.allclose(sizes, sizes.round(), atol=1e-6) or keep == 0.02  # winners' ties are shared


def test_balanced_of_few_rows_is_the_selector():
    features = torch.randn(500, 6, generator=torch.Generator().manual_seed(4))
    found = keep_rows(500, 0.1, "balanced", features=features, seed=7)
    inclusion = inclusion_probabilities(features.double(), 50, 0.1)
    start = systematic_sample(inclusion, 50, seeded(7, "subset"))
    rows = balance(features.double(), inclusion, start, 50).sort().values
    weights = expansion_weights(inclusion, rows)
    assert torch.equal(found.rows, rows)
    assert torch.allclose(found.ones, weights / weights.mean())


def test_balanced_in_blocks_is_near_the_mean(monkeypatch):
    features = torch.randn(3000, 6, generator=torch.Generator().manual_seed(4)) + 1
    monkeypatch.setattr("corebatch.subset.balanced.BLOCK", 200)
    array = features.double().numpy()
    found, chance = keep_rows(3000, 0.1, "balanced", features=features), keep_rows(3000, 0.1, "random")
    errors = [naive.squared_error_of_sum(array, kept.rows.tolist(), np.asarray(kept.ones)) for kept in (found, chance)]
    assert errors[0] < 0.05 * errors[1]
