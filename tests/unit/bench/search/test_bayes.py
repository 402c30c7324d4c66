"""The search itself, on a function that costs nothing."""

import statistics

import pytest
import torch

from corebatch.bench.search.bayes import Trial, best, opening, propose
from corebatch.seeds import seeded

pytest.importorskip("botorch", reason="needs pip install 'corebatch[search]'")
pytestmark = pytest.mark.usefixtures("one_thread")
OWN, COSTS = (0.05, 0.05, 0.2, 0.7), (0.25, 1.0)
NEEDS = torch.tensor([0.55, 0.3, 0.1, 0.05], dtype=torch.float64)


def loss(shares, cost):
    """Power laws of what each source gets, as in training; a short run is worse, and not by the same for all shares."""
    given = torch.tensor(shares, dtype=torch.float64)
    return float((NEEDS * (given + 1e-3) ** -0.3).sum()) + (1 - cost) * (0.4 + 0.05 * float(given[0]))


def tried(trials):
    return [Trial(shares=each.shares, cost=each.cost, value=loss(each.shares, each.cost)) for each in trials]


def searched(seed, steps=8, count=1):
    done = tried(opening(OWN, COSTS, seed))
    for _ in range(steps):
        done += tried(propose(done, COSTS, count, seed))
    return done


def at_random(seed, runs):
    """The best of so many whole runs with shares at random."""
    drawn = torch.rand(runs, 4, generator=seeded(seed, "random"), dtype=torch.float64).log().neg()
    return min(loss(tuple(each.tolist()), 1.0) for each in drawn / drawn.sum(dim=1, keepdim=True))


def test_it_finds_better_shares_than_random_ones_of_the_same_cost():
    found, random = [], []
    for seed in range(2):
        done = searched(seed)
        assert [each.cost for each in done[:7]] == [0.25] * 5 + [1.0] * 2, "cheap runs first"
        assert any(each.cost == COSTS[0] for each in done[7:])
        made = best(done, [OWN, (0.25,) * 4], seed)
        found.append(loss(made.shares, 1.0))
        random.append(at_random(seed, round(sum(each.cost for each in done))))
        assert sum(made.shares) == pytest.approx(1.0, abs=1e-5)
        assert all(share >= 0 for share in made.shares)
        for (gain, deviation), other in zip(made.gains, (OWN, (0.25,) * 4), strict=True):
            assert gain > 0
            assert abs(gain - (loss(other, 1.0) - found[-1])) < 4 * deviation + 0.02
        assert made.loss == pytest.approx(found[-1], abs=0.1)
    assert statistics.mean(found) < statistics.mean(random) - 0.02
    assert max(found) < loss((0.25,) * 4, 1.0) < loss(OWN, 1.0)


def test_proposals_go_by_trials_and_seed_alone():
    done = tried(opening(OWN, COSTS, 0))
    before = torch.get_rng_state()
    once = propose(done, COSTS, 2, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(17)
    assert propose(done, COSTS, 2, 0) == once
    assert propose(done, COSTS, 1, 1) != once[:1]
    assert len({each.shares for each in once}) == 2, "runs side by side are not the same one"
    failed = [*done, Trial(shares=(0.1, 0.2, 0.3, 0.4), cost=0.25)]
    assert all(each.cost in COSTS for each in propose(failed, COSTS, 1, 0))


def test_one_fidelity_is_a_search_of_whole_runs():
    done = tried(opening(OWN, (1.0,), 0))
    assert len(done) == 5
    done += tried(propose(done, (1.0,), 2, 0))
    assert {each.cost for each in done} == {1.0}
    assert len(best(done, [OWN], 0).gains) == 1


@pytest.mark.parametrize("own", [(0.5, 0.5), (0.999999, 0.000001), (1 / 3, 1 / 3, 1 / 3)])
def test_shares_have_six_digits_and_sum_to_one(own):
    for each in opening(own, COSTS, 3):
        assert sum(each.shares) == pytest.approx(1.0, abs=1e-9)
        assert all(round(share, 6) == share and 0 <= share <= 1 for share in each.shares)
