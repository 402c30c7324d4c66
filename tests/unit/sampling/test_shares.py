"""How often the rows of each source come: settings, the shares they make of a data set, and the rows of an epoch."""

from collections import Counter

import pytest
import torch

from corebatch.errors import ConfigError
from corebatch.sampling.draws import SourceSampler, apportioned
from corebatch.sampling.shares import DrawPlan, make_sampling
from corebatch.seeds import seeded

NAMES, ROWS = {0: "algebra", 1: "logic", 2: "rare"}, {0: 60, 1: 30, 2: 10}
SOURCES = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
UPSAMPLED = [{"until": 0.5, "is": {}}, {"until": 0.75, "is": {"rare": 0.6}, "ramp": True}, {"is": {"rare": 0.6}}]


def plan(steps=0, **sampling):
    return DrawPlan(make_sampling(sampling), NAMES, ROWS, lambda: steps)


def sampler(made, *, large=10, seed=5, step=lambda: 0):
    return SourceSampler(made, SOURCES, large=large, seed=seed, step=step)


@pytest.mark.parametrize(
    "value, message",
    [
        ("rare", "mapping of shares, temperature, epochs, until"),
        ({"share": {"rare": 0.5}}, "'share'. Did you mean 'shares'"),
        ({"shares": {"rare": 0.5}, "temperature": 1}, "one of them. Found both"),
        ({"until": "all_seen"}, "shares, a temperature or learnt, one of them. Found until"),
        ({"shares": {}}, "Found {}"),
        ({"shares": [0.1, 0.9]}, "part 1 should be a mapping"),
        ({"shares": {"rare": 0, "logic": 0.0}}, "sum to more than 0"),
        ({"shares": {"rare": -0.1}}, "share of 'rare' should be a number of at least 0. Found -0.1"),
        ({"shares": {"rare": float("nan")}}, "share of 'rare'.*Found nan"),
        ({"shares": {"rare": float("inf")}}, "share of 'rare'.*Found inf"),
        ({"shares": {"rare": True}}, "share of 'rare'.*Found True"),
        ({"shares": {"rare": "much"}}, "share of 'rare'.*Found 'much'"),
        ({"temperature": -1}, "temperature should be a number of at least 0. Found -1"),
        ({"temperature": float("nan")}, "temperature.*Found nan"),
        ({"temperature": 0, "epochs": "new"}, "epochs should be new_draw or fixed. Found 'new'"),
        ({"temperature": 0, "until": ["all_seen"]}, "until should be all_seen or shortest"),
        ({"shares": [{"until": 0.5, "is": {"rare": -1}}, {"is": {}}]}, "part 1.*share of 'rare'"),
        ({"shares": [{"until": 0.5, "is": {}}, {"until": 0.4, "is": {}}, {"is": {}}]}, "overlap"),
        ({"shares": UPSAMPLED, "until": "all_seen"}, "until.*beside a schedule"),
        ({"shares": UPSAMPLED, "epochs": "fixed"}, "epochs fixed.*schedule"),
    ],
)
def test_settings_are_checked(value, message):
    with pytest.raises(ConfigError, match=message):
        make_sampling(value)


@pytest.mark.parametrize(
    "value",
    [
        {"shares": {"rare": 0.5}},
        {"shares": {"rare": 0.5}, "epochs": "fixed", "until": "shortest"},
        {"temperature": 0},
        {"shares": UPSAMPLED},
    ],
)
def test_settings_are_written_as_they_were_given(value):
    assert make_sampling(value).in_words().startswith("sources drawn ")
    assert make_sampling(value).plain() == value
    assert make_sampling(make_sampling(value).plain()) == make_sampling(value)
    assert make_sampling(None) is make_sampling({}) is None


@pytest.mark.parametrize(
    "sampling, shares",
    [
        ({"temperature": 1}, [0.6, 0.3, 0.1]),
        ({"temperature": 0}, [1 / 3] * 3),
        ({"temperature": 0.5}, [rows**0.5 / (60**0.5 + 30**0.5 + 10**0.5) for rows in (60, 30, 10)]),
        ({"shares": {"rare": 0.4}}, [0.4, 0.2, 0.4]),  # the others share what is left by their rows
        ({"shares": {"rare": 0.5, "logic": 0.5}}, [0, 0.5, 0.5]),
        ({"shares": {"algebra": 1, "logic": 1, "rare": 2}}, [0.25, 0.25, 0.5]),  # all are named: relative
    ],
)
def test_shares_of_a_data_set(sampling, shares):
    made = plan(**sampling)
    assert made.shares(0).tolist() == pytest.approx(shares)
    for source, share in enumerate(shares):  # what is drawn, corrected, counts as in the data
        assert share * made.corrections(3).get(source, 0) == pytest.approx(ROWS[source] / 100 if share else 0)
    assert made.never_drawn() == [NAMES[source] for source, share in enumerate(shares) if not share]
    assert ("Never drawn: algebra" in made.in_words(True)) == (shares[0] == 0)


@pytest.mark.parametrize(
    "shares, message",
    [
        ({"rae": 0.5}, "algebra, logic, rare. Found 'rae'. Did you mean 'rare'"),
        ({"rare": 0.7, "logic": 0.7}, r"\(algebra\).*sum of 1.4"),
        ([{"until": 0.5, "is": {}}, {"is": {"rae": 0.5}}], "Found 'rae'"),
    ],
)
def test_shares_of_sources_that_are_not_there(shares, message):
    with pytest.raises(ConfigError, match=message):
        plan(shares=shares)


def test_an_epoch_that_would_never_end_is_refused():
    with pytest.raises(ConfigError, match="'rare' comes so rarely"):
        plan(shares={"rare": 1e-9}, until="all_seen")


@pytest.mark.parametrize(
    "sampling, steps, often",
    [
        ({}, 10, [24, 12, 64]),
        ({"until": "all_seen"}, 25, [60, 30, 160]),
        ({"until": "shortest"}, 2, [5, 2, 13]),
    ],
)
def test_what_an_epoch_is(sampling, steps, often):
    """Rounded up to whole steps: 100 rows, 250 until algebra has come, 16 until rare has."""
    made = sampler(plan(shares={"rare": 0.64}, **sampling))
    assert len(made) == 10 * made.steps == 10 * steps
    for epoch in range(3):
        counts = Counter(SOURCES[made.order(epoch)].tolist())
        assert [counts[source] for source in range(3)] == pytest.approx(often, abs=1)
    if sampling.get("until") == "all_seen":
        assert set(made.order(0).tolist()) == set(range(100))


def test_with_the_shares_of_the_data_an_epoch_is_a_shuffle():
    made = sampler(plan(temperature=1))
    orders = [made.order(epoch) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(100)) for order in orders)
    assert not torch.equal(orders[0], orders[1])


@pytest.mark.parametrize("large", [7, 16])
def test_all_rows_of_a_source_come_before_one_comes_again(large):
    """Over epochs too, for sources that come less and more than once in one."""
    made = sampler(plan(shares={"rare": 0.4}), large=large)
    drawn = torch.cat([made.order(epoch) for epoch in range(7)])
    for source, rows in ROWS.items():
        own = drawn[SOURCES[drawn] == source]
        assert len(own) > 2 * rows
        for start in range(0, len(own) - rows, rows):
            assert len(own[start : start + rows].unique()) == rows


def test_fixed_epochs_have_the_same_rows_in_another_order():
    made = sampler(plan(shares={"rare": 0.43}, epochs="fixed"))
    orders = [made.order(epoch).tolist() for epoch in range(4)]
    assert all(Counter(order) == Counter(orders[0]) and order != orders[0] for order in orders[1:])
    own = [row for row in orders[2] if SOURCES[row] == 2]
    assert all(len(set(own[start : start + 10])) == 10 for start in (0, 10, 20, 30))
    other = sampler(plan(shares={"rare": 0.43}, epochs="fixed"), seed=6)
    assert Counter(other.order(0).tolist()) != Counter(orders[0])


def test_an_order_depends_on_seed_and_epoch_alone():
    fresh = [sampler(plan(shares={"rare": 0.4})).order(epoch) for epoch in (4, 0, 2)]
    used = sampler(plan(shares={"rare": 0.4}))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    again = [used.order(epoch) for epoch in (4, 0, 2)]
    assert all(torch.equal(one, other) for one, other in zip(fresh, again, strict=True))
    assert torch.equal(before, torch.get_rng_state())
    at = {"step": 47}
    resumed = sampler(plan(shares={"rare": 0.4}), step=lambda: at["step"])
    assert list(resumed) == fresh[0].tolist()  # 10 steps an epoch: the fifth
    assert not torch.equal(sampler(plan(shares={"rare": 0.4}), seed=6).order(0), fresh[1])


def test_a_schedule_is_kept_at_every_step():
    made = sampler(plan(steps=40, shares=UPSAMPLED))  # four epochs of ten steps
    for epoch in range(4):
        for step, rows in enumerate(made.order(epoch).view(10, 10), start=10 * epoch):
            rare = int((SOURCES[rows] == 2).sum())
            share = float(made.plan.shares(step)[2])
            assert share == pytest.approx(0.1 if step < 20 else 0.6 if step >= 30 else 0.1 + 0.05 * (step - 20))
            assert rare == pytest.approx(10 * share, abs=1) or step < 20 or step >= 30
            assert made.plan.corrections(step)[2] == pytest.approx(0.1 / share)
    late = torch.cat([made.order(epoch) for epoch in range(4)])[200:]
    own = late[SOURCES[late] == 2][:10]
    assert len(own.unique()) == 10  # the first two epochs were whole passes
    longer = SourceSampler(plan(steps=80, shares=UPSAMPLED), SOURCES, large=10, seed=5, step=lambda: 0)
    assert sum(int(SOURCES[row]) == 2 for row in longer.order(3).tolist()) == 10


def test_a_place_has_a_source_with_its_share_and_a_row_with_its_part():
    """Over seeds: the probability that corrections divide by, at every place of an epoch."""
    draws, made = 3000, plan(shares={"rare": 0.37})
    orders = torch.stack([sampler(made, seed=seed).order(1)[[0, 3, 50, 99]] for seed in range(draws)])
    for source, share in enumerate(made.shares(0).tolist()):
        found = (SOURCES[orders] == source).double().mean(dim=0)
        assert (found - share).abs().max() < 4.5 * (share * (1 - share) / draws) ** 0.5
    counts = torch.bincount(orders[SOURCES[orders] == 2] - 90, minlength=10).double()
    expected = counts.sum() / 10
    assert ((counts - expected).abs() < 4.5 * expected.sqrt()).all()


def test_rounding_is_right_in_expectation():
    shares = torch.tensor([0.37, 0.0, 0.13, 0.5], dtype=torch.float64)
    counts = torch.stack([apportioned(shares, 5, seeded(seed, "test")) for seed in range(4000)])
    assert (counts.sum(dim=1) == 5).all()
    assert ((counts - 5 * shares).abs() < 1).all()
    assert (counts.double().mean(dim=0) - 5 * shares).abs().max() < 0.04
    exact = apportioned(torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64), 10, seeded(1, "test"))
    assert exact.tolist() == [1, 2, 7]


def test_rows_come_again():
    made = plan(shares={"rare": 0.4})
    assert not made.come_again(25)
    assert made.come_again(26)
    assert plan(steps=100, shares=UPSAMPLED).come_again(20)


def test_a_row_of_a_small_source_comes_many_times():
    one = SourceSampler(
        DrawPlan(make_sampling({"temperature": 0}), {0: "a", 1: "b"}, {0: 9999, 1: 1}),
        torch.tensor([0] * 9999 + [1]), large=4, seed=0, step=lambda: 0,
    )  # fmt: skip
    assert (one.order(2) == 9999).sum() == 5000
