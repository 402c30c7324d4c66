"""Stage 1: source ids and a budget become groups."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corebatch.errors import ConfigError, CorebatchError
from corebatch.sources import encode_sources, proportional, small_candidates, split
from corebatch.types import SourceGroup


@st.composite
def splits(draw: st.DrawFn) -> tuple[list[int], int, frozenset[int]]:
    ids = draw(st.lists(st.integers(0, 6), min_size=1, max_size=60))
    return ids, draw(st.integers(0, len(ids))), frozenset(draw(st.sets(st.integers(0, 8))))


@settings(deadline=None)
@given(splits(), st.booleans())
def test_groups_partition_the_rows_and_budgets_sum(
    case: tuple[list[int], int, frozenset[int]], per_source: bool
) -> None:
    ids, budget, candidates = case
    groups = split(torch.tensor(ids), budget, candidates=candidates, per_source=per_source)
    counts = Counter(ids)
    rows = [row for group in groups for row in group.members.tolist()]
    assert sorted(rows) == list(range(len(ids)))
    assert sum(group.budget for group in groups) == budget
    for group in groups:
        members = group.members.tolist()
        assert members == sorted(members)
        if group.keep or per_source:
            assert {ids[row] for row in members} == {int(group.name)}
            assert len(members) == counts[int(group.name)]

    kept = [group for group in groups if group.keep]
    others = [group for group in groups if not group.keep]
    assert groups == [*kept, *others]
    names = [int(group.name) for group in kept]
    assert set(names) <= candidates
    taken = sum(group.budget for group in kept)
    assert 2 * taken <= budget
    assert names == sorted(names, key=lambda s: (counts[s], s))
    left = sorted((counts[s], s) for s in candidates & counts.keys() if s not in names)
    if left:  # from the smallest up, and the next would be more than half
        assert not names or (counts[names[-1]], names[-1]) < left[0]
        assert 2 * (taken + left[0][0]) > budget
    if per_source:
        assert [g.budget for g in others] == proportional([len(g.members) for g in others], budget - taken)
    else:
        assert len(others) == 1
        assert others[0].name == ("rest" if kept else "all")


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**12), max_size=12), st.integers(0, 10**12))
def test_shares_are_by_largest_remainders(counts: list[int], budget: int) -> None:
    total = sum(counts)
    budget = min(budget, total)
    shares = proportional(counts, budget)
    assert len(shares) == len(counts)
    assert sum(shares) == budget
    for count, share in zip(counts, shares, strict=True):
        assert 0 <= share <= count
        assert total == 0 or budget * count // total <= share <= budget * count // total + 1
    remainder = [budget * count % total if total else 0 for count in counts]
    up = [i for i, count in enumerate(counts) if total and shares[i] > budget * count // total]
    for i in up:
        assert all((-remainder[i], i) < (-remainder[j], j) for j in range(len(counts)) if j not in up)


@pytest.mark.parametrize(
    "counts, budget, expected",
    [
        ([3, 3, 3], 4, [2, 1, 1]),  # ties go to the first
        ([1, 2, 7], 5, [1, 1, 3]),  # 0.5, 1, 3.5
        ([5, 0, 5], 3, [2, 0, 1]),
        ([0, 0], 0, [0, 0]),
        ([], 0, []),
        ([10**17, 10**17 + 2], 10**17 + 1, [5 * 10**16, 5 * 10**16 + 1]),  # floats have no digits left here
    ],
)
def test_examples_of_shares(counts: list[int], budget: int, expected: list[int]) -> None:
    assert proportional(counts, budget) == expected


def test_a_split_by_hand() -> None:
    ids = torch.tensor([0] * 6 + [1] * 2 + [2] * 8 + [3] * 4)
    names = ["a", "b", "c", "d"]
    groups = split(ids, 10, candidates=frozenset({1, 3}), names=names, per_source=True)
    # b is kept (2 of at most 5); d would make it 6. The rest, 8, goes 6 : 8 : 4.
    assert [(group.name, group.budget, group.keep) for group in groups] == [
        ("b", 2, True),
        ("a", 3, False),
        ("c", 3, False),
        ("d", 2, False),
    ]
    (kept, rest) = split(ids, 10, candidates=frozenset({1, 3}), names=names)
    assert (kept.name, rest.name, rest.budget, len(rest.members)) == ("b", "rest", 8, 18)


@pytest.mark.parametrize(
    "counts, policy, expected",
    [
        ({0: 50, 1: 49, 2: 1}, "auto", {2}),
        ({0: 10, 1: 10}, "auto", set()),  # a share of just 1 / S is not small
        ({0: 10, 1: 11}, "auto", {0}),
        ({0: 7}, "auto", set()),
        ({}, "auto", set()),
        ({0: 50, 1: 49, 2: 1}, None, set()),
        ({0: 50, 1: 49, 2: 1}, ["a", "c", "unknown"], {0, 2}),
        ({0: 50, 1: 49, 2: 1}, ("b",), {1}),
        ({0: 50}, [], set()),
    ],
)
def test_candidates(counts: dict[int, int], policy: Any, expected: set[int]) -> None:
    assert small_candidates(counts, ["a", "b", "c"], policy) == expected


def test_candidates_by_number() -> None:
    assert small_candidates({0: 3, 1: 1}, ["10", "20"], [20]) == {1}


@pytest.mark.parametrize("policy", ["rare", "", 3, True, 0.5])
def test_a_policy_that_is_none_is_an_error(policy: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        small_candidates({0: 1}, ["a"], policy)
    assert "small_sources should be 'auto', a list of source names, or none" in str(caught.value)
    assert repr(policy) in str(caught.value)


@pytest.mark.parametrize(
    "given_ids, positions, names",
    [
        (["b", "a", "b"], [1, 0, 1], ["a", "b"]),
        ([3, -1, 3], [1, 0, 1], ["-1", "3"]),
        (("b", 2, "a"), [2, 0, 1], ["2", "a", "b"]),
        (torch.tensor([7, 7, 5]), [1, 1, 0], ["5", "7"]),
        (torch.tensor([7, 7, 5], dtype=torch.uint8), [1, 1, 0], ["5", "7"]),
        (None, [0, 0, 0], ["all"]),
    ],
)
def test_encoding(given_ids: Any, positions: list[int], names: list[str]) -> None:
    found, found_names = encode_sources(given_ids, 3)
    assert found.dtype == torch.long
    assert found.tolist() == positions
    assert found_names == names


@pytest.mark.parametrize(
    "given_ids, found",
    [
        (["a", "b"], "Found 2"),
        (["a"] * 4, "Found 4"),
        (torch.tensor([1, 2]), "Found 2"),
        ("abc", "the string 'abc'"),
        (["a", 1.5, "b"], "1.5 in row 1"),
        (["a", "b", None], "None in row 2"),
        ([True, False, True], "True in row 0"),
        (torch.zeros(3), "torch.float32"),
        (torch.zeros(3, dtype=torch.bool), "torch.bool"),
        (torch.zeros(3, dtype=torch.complex64), "torch.complex64"),
        (torch.zeros(3, 1, dtype=torch.long), "(3, 1)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_ids_that_are_none_are_errors(given_ids: Any, found: str) -> None:
    with pytest.raises(CorebatchError) as caught:
        encode_sources(given_ids, 3)
    assert isinstance(caught.value, ValueError)
    assert "`source_ids` should" in str(caught.value)
    assert found in str(caught.value)


@pytest.mark.parametrize(
    "fields, found",
    [
        ({"members": torch.tensor([0.0])}, "torch.float32"),
        ({"members": torch.tensor([[0]])}, "(1, 1)"),
        ({"budget": -1}, "-1"),
        ({"budget": 4}, "4"),
        ({"keep": True, "budget": 2}, "2 of 3"),
    ],
)
def test_a_group_is_checked_where_it_is_made(fields: dict[str, Any], found: str) -> None:
    with pytest.raises(CorebatchError) as caught:
        SourceGroup(**{"name": "algebra", "members": torch.arange(3), "budget": 1, **fields})
    assert found in str(caught.value)
