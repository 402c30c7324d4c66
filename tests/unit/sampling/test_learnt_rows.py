"""Methods that leave out rows that are learnt: against their official code's algorithm, and what they promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from corebatch.errors import InputError
from corebatch.memory import LossMemory
from corebatch.sampling.learnt import LEARNT, Known, make_learnt
from corebatch.sampling.learnt.seta import groups_by_loss

losses_of = st.lists(st.floats(0.01, 9, allow_subnormal=False), min_size=4, max_size=60)


def known(losses, before=None, sizes=None, lengths=None):
    column = torch.as_tensor(losses, dtype=torch.float64)
    nothing = torch.full_like(column, math.nan)
    return Known(
        losses=column,
        before=nothing if before is None else torch.as_tensor(before, dtype=torch.float64),
        sizes=column if sizes is None else torch.as_tensor(sizes, dtype=torch.float64),
        lengths=torch.full_like(column, 10.0) if lengths is None else torch.as_tensor(lengths, dtype=torch.float64),
    )


@given(losses=losses_of, prune=st.floats(0, 0.9), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_infobatch_keeps_what_the_official_code_keeps(losses, prune, seed):
    """The same scores and the same generator in, the same rows out; weights but for the rounding of their number."""
    scores, random = np.array(losses), np.random.RandomState(seed)
    below = np.flatnonzero(scores < scores.mean())
    share = max(0.1, 1 - prune)
    drawn = random.choice(below, int(share * len(below)), replace=False) if len(below) else below
    expected = sorted([*np.flatnonzero(~(scores < scores.mean())), *drawn])
    kept = make_learnt({"method": "infobatch", "prune": prune}).keep(known(losses), 3, np.random.RandomState(seed))
    if not len(drawn):
        assert len(kept.rows) == len(losses)  # a pass of the rows above the mean alone would be biased
        return
    assert kept.rows.tolist() == expected
    if kept.weights is not None:
        assert float(kept.weights.sum()) == pytest.approx(len(losses))
        assert set(kept.weights[scores[kept.rows] >= scores.mean()].tolist()) <= {1.0}
        assert len(drawn) / len(below) * float(kept.weights.max()) == pytest.approx(1) or not len(drawn)


@pytest.mark.parametrize("number", range(1, 8))
def test_seta_keeps_the_window_of_the_official_code(number):
    """k-means of the rows that are left, its groups by their means, and those from k mod (groups - window + 1) on."""
    values = np.random.RandomState(0)
    losses = np.concatenate([values.normal(center, 0.02, 40) for center in (0.2, 0.9, 1.7, 2.6, 3.4)])
    method = make_learnt({"method": "seta", "prune": 0, "groups": 5, "window": 0.4})
    labels = KMeans(n_clusters=5, random_state=0).fit(losses[:, None]).labels_
    order = np.argsort([losses[labels == label].mean() for label in range(5)])
    first = number % (5 - 2 + 1)
    expected = np.flatnonzero(np.isin(labels, order[first : first + 2]))
    kept = method.keep(known(losses), number, np.random.RandomState(1))
    assert kept.rows.tolist() == expected.tolist()
    assert kept.weights is None


@given(losses=st.lists(st.floats(0, 5), min_size=8, max_size=80), groups=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_groups_by_loss_are_a_fixed_point_of_k_means(losses, groups):
    values = torch.tensor(losses, dtype=torch.float64)
    group = groups_by_loss(values, groups)
    ordered = group[values.argsort(stable=True)]
    assert bool((ordered.diff() >= 0).all())
    assert 0 <= int(group.min()) <= int(group.max()) < groups
    means = {int(each): float(values[group == each].mean()) for each in group.unique()}
    if len(set(losses)) > 1:
        for value, each in zip(losses, group.tolist(), strict=True):
            nearest = min(abs(value - mean) for mean in means.values())
            assert abs(value - means[each]) <= nearest + 1e-9


def test_by_size_comes_in_proportion_and_counts_for_the_rest():
    sizes = torch.tensor([0.0, 1, 2, 3, 10] * 8, dtype=torch.float64)
    target = torch.linspace(1, 2, len(sizes)).double()
    method = make_learnt({"method": "by_size", "keep_share": 0.3})
    often, sums = torch.zeros(len(sizes)), []
    for seed in range(2000):
        kept = method.keep(known(sizes), 2, np.random.RandomState(seed))
        assert len(kept.rows) == 12
        often[kept.rows] += 1 / 2000
        sums.append(float((kept.weights * target[kept.rows]).sum()))
        assert float(kept.weights.max()) <= 1.1 / 0.1 / 0.3 + 1e-9
    error = np.std(sums) / math.sqrt(len(sums))
    assert np.mean(sums) == pytest.approx(float(target.sum()), abs=4 * error)
    assert often[sizes == 2].mean() == pytest.approx(2 * float(often[sizes == 1].mean()), rel=0.1)


def test_by_size_has_long_rows_come_less_often():
    lengths, often = torch.tensor([1.0, 16.0] * 20), torch.zeros(40)
    method = make_learnt({"method": "by_size", "keep_share": 0.25, "cost_power": 0.5})
    for seed in range(400):
        often[method.keep(known([1.0] * 40, lengths=lengths), 2, np.random.RandomState(seed)).rows] += 1 / 400
    assert float(often[::2].mean()) == pytest.approx(4 * float(often[1::2].mean()), rel=0.15)


def test_tail_leaves_out_what_is_low_and_stands_still():
    now = [0.1, 0.1, 2.0, 2.0, 0.5, math.nan]
    before = [0.1, 0.2, 2.0, 4.0, math.nan, math.nan]
    kept = make_learnt({"method": "tail", "again": 0}).keep(known(now, before), 1, np.random.RandomState(0))
    assert kept.rows.tolist() == [1, 2, 3, 4, 5]


def test_floor_leaves_out_what_is_below_it_but_for_a_share():
    values = [0.01] * 20 + [1.0] * 5 + [math.nan]
    kept = make_learnt({"method": "floor", "again": 0.1}).keep(known(values), 1, np.random.RandomState(0))
    assert kept.rows.tolist()[-6:] == [20, 21, 22, 23, 24, 25]
    assert len(kept.rows) == 8


@pytest.mark.parametrize("name", LEARNT)
def test_rows_that_are_not_known_come(name):
    nothing = known([math.nan] * 40)
    kept = make_learnt({"method": name, **({"prune": 0} if name == "seta" else {})})
    assert kept.keep(nothing, 0, np.random.RandomState(0)).rows.tolist() == list(range(40))
    half = known([math.nan] * 20 + np.linspace(0.01, 3, 20).tolist())
    found = kept.keep(half, 3, np.random.RandomState(0)).rows.tolist()
    assert found[:20] == list(range(20))
    assert len(found) == len(set(found))


@pytest.mark.parametrize("name", LEARNT)
def test_a_pass_is_never_empty_and_infinity_is_refused(name):
    same = known([0.001] * 30, before=[0.001] * 30)
    options = {"again": 0} if name in ("tail", "floor") else {}
    assert len(make_learnt({"method": name, **options}).keep(same, 5, np.random.RandomState(0)).rows)
    with pytest.raises(InputError, match="infinity"):
        make_learnt(name).keep(known([0.1, math.inf, 0.2]), 1, np.random.RandomState(0))


def test_the_memory_of_losses_keeps_two_visits():
    memory = LossMemory(4)
    memory.update(torch.tensor([2, 0]), torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.25]), torch.tensor([3, 4]))
    memory.update(torch.tensor([2, 2]), torch.tensor([7.0, 0.5]), torch.tensor([9.0, 0.125]), torch.tensor([3, 3]))
    assert memory.losses.nan_to_num(-1).tolist() == [2.0, -1, 0.5, -1]
    assert memory.before.nan_to_num(-1).tolist() == [-1, -1, 1.0, -1]
    assert memory.sizes.nan_to_num(-1).tolist() == [0.25, -1, 0.125, -1]
    assert memory.lengths.nan_to_num(-1).tolist() == [4.0, -1, 3.0, -1]
    other = LossMemory(4)
    other.load_state_dict(memory.state_dict())
    assert all(
        torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))
        for a, b in zip(memory.state_dict().values(), other.state_dict().values(), strict=True)
    )
