"""The lazy greedy chooses what the naive one chooses, ties included, compiled or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_greedy import naive_distances, naive_greedy
from torch import Tensor

from corebatch.selectors import SELECTORS, select_from_similarities
from corebatch.selectors.kernels.distances import distances
from corebatch.selectors.kernels.greedy import TOLERANCE, greedy, greedy_loop, greedy_numpy


def assert_agrees(similarities: Tensor, budget: int) -> None:
    chosen, gains = naive_greedy(similarities, budget)
    by_candidate = np.ascontiguousarray(similarities.T.numpy())
    for body in (greedy, greedy_loop, greedy_numpy):
        found, found_gains = body(by_candidate, np.zeros(len(by_candidate), np.int64), np.array([budget]), TOLERANCE)
        assert found.tolist() == chosen
        assert found_gains.tolist() == pytest.approx(gains, rel=1e-9, abs=1e-9)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(20))
def test_random_similarities(seed: int) -> None:
    """Neither symmetric nor positive."""
    similarities = torch.randn(14, 14, generator=_generator(seed), dtype=torch.float64)
    assert_agrees(similarities, 9)
    assert_agrees(similarities.float(), 13)


@pytest.mark.parametrize("seed", range(20))
def test_tied_similarities(seed: int) -> None:
    similarities = torch.randint(-1, 3, (13, 13), generator=_generator(seed)).double()
    assert_agrees(similarities, 12)
    assert_agrees(torch.minimum(similarities, similarities.T), 7)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(2, 8))
def test_any_small_integers(data: st.DataObject, count: int) -> None:
    rows = st.lists(st.integers(0, 2), min_size=count, max_size=count)
    matrix = data.draw(st.lists(rows, min_size=count, max_size=count))
    assert_agrees(torch.tensor(matrix, dtype=torch.float64), data.draw(st.integers(1, count)))


@pytest.mark.parametrize("seed", range(10))
def test_features_on_a_grid(seed: int) -> None:
    """Integer features: l1 distances are exact and full of ties, so the whole selector must agree exactly."""
    features = torch.randint(0, 3, (16, 3), generator=_generator(seed)).float()
    apart = naive_distances(features, "l1")
    chosen, gains = naive_greedy(apart.max() - apart, 10)
    selection = SELECTORS["facility_location"]().select(features, 10)
    assert selection.indices.tolist() == sorted(chosen)
    assert selection.gains is not None
    scaled = selection.gains / selection.gains[0]  # the selector divides features by a power of two
    assert scaled.tolist() == pytest.approx([gain / gains[0] for gain in gains], rel=1e-6)


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine"])
def test_noise_does_not_choose_between_duplicates(metric: str) -> None:
    """Copies of a row tie in truth, and by the noise of floating point one is ahead: the first is taken."""
    features = torch.randn(10, 33, generator=_generator(0), dtype=torch.float64)
    tripled = torch.cat([features, features, features])
    selection = SELECTORS["facility_location"](metric=metric).select(tripled, 10)
    assert int(selection.indices.max()) < 10


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine"])
def test_distances(metric: str) -> None:
    features = torch.randn(9, 5, generator=_generator(1), dtype=torch.float64)
    found = distances(features, metric)  # type: ignore[arg-type]
    exact = 1e-12 if metric == "cosine" else 1e-6  # float64, and float32
    torch.testing.assert_close(found.double(), naive_distances(features, metric), rtol=exact, atol=exact)
    assert bool((found.diagonal() == 0).all())


def test_similarities_are_columns_of_candidates() -> None:
    """Entry [i, s] says how well s represents i: candidate 2 represents everyone."""
    similarities = torch.zeros(4, 4)
    similarities[:, 2] = 1.0
    selection = select_from_similarities(similarities, 1)
    assert selection.indices.tolist() == [2]
    assert selection.gains is not None
    assert selection.gains.tolist() == [4.0]
    assert select_from_similarities(similarities, 3).indices.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_given_matrix_is_not_modified(dtype: torch.dtype) -> None:
    similarities = torch.rand(12, 12, generator=_generator(2)).to(dtype)
    similarities = similarities + similarities.T
    before = similarities.clone()
    first = select_from_similarities(similarities, 5)
    assert torch.equal(similarities, before)
    chosen, _ = naive_greedy(similarities, 5)
    assert first.indices.tolist() == sorted(chosen)


def test_every_row_the_same_is_quick() -> None:
    """Nothing to gain after the first: no evaluation of every candidate in every step."""
    selection = select_from_similarities(torch.ones(1500, 1500), 1400)
    assert selection.indices.tolist() == list(range(1400))


@pytest.mark.parametrize(
    "similarities, budget, found",
    [
        (torch.zeros(3, 4), 1, "(3, 4)"),
        (torch.zeros(3), 1, "(3,)"),
        (torch.zeros(3, 3), 4, "Found 4"),
        (torch.zeros(3, 3), True, "Found True"),
        (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), 1, "rows 1"),
    ],
)
def test_refuses_similarities(similarities: Tensor, budget: int, found: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is checked below)
        select_from_similarities(similarities, budget)
    assert found in str(caught.value)


def test_similarities_of_all_and_none() -> None:
    everything = select_from_similarities(torch.eye(3), 3)
    assert everything.indices.tolist() == [0, 1, 2]
    assert everything.uniform
    assert len(select_from_similarities(torch.eye(3), 0)) == 0
