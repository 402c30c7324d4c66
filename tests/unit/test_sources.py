"""Stage 1: source ids and a budget become groups."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corebatch import select
from corebatch.errors import ConfigError, CorebatchError
from corebatch.seeds import seeded
from corebatch.sources import Keeping, check_cap, encode_sources, proportional, small_candidates, split
from corebatch.trainer import CoresetConfig
from corebatch.types import SourceGroup


@st.composite
def splits(draw: st.DrawFn) -> tuple[list[int], int, frozenset[int]]:
    ids = draw(st.lists(st.integers(0, 6), min_size=1, max_size=60))
    return ids, draw(st.integers(0, len(ids))), frozenset(draw(st.sets(st.integers(0, 8))))


@settings(deadline=None)
@given(splits(), st.booleans(), st.booleans(), st.one_of(st.none(), st.floats(0.01, 1.0)), st.booleans())
def test_groups_partition_the_rows_and_budgets_sum(
    case: tuple[list[int], int, frozenset[int]], per_source: bool, weighted: bool, cap: float | None, random: bool
) -> None:
    ids, budget, small = case
    groups = split(
        torch.tensor(ids),
        budget,
        keeping=Keeping(small, cap, weighted),
        per_source=per_source,
        generator=seeded(0, "split") if random else None,
    )
    counts = Counter(ids)
    rows = [row for group in groups for row in group.members.tolist()]
    assert sorted(rows) == list(range(len(ids)))
    assert sum(group.budget for group in groups) == budget
    for group in groups:
        members = group.members.tolist()
        assert members == sorted(members)
        if group.keep or per_source:
            assert {ids[row] for row in members} == {int(group.name)}

    kept = [group for group in groups if group.keep]
    others = [group for group in groups if not group.keep]
    assert groups == [*kept, *others]
    sizes = [len(group.members) for group in kept]
    assert sizes == sorted(sizes)
    inside = [row for row, source in enumerate(ids) if source in small]
    taken = sorted(row for group in kept for row in group.members.tolist())
    if cap is None and not weighted:  # all of them; the first ones where they are more than the budget
        assert taken == inside[:budget]
    else:  # whole sources from the smallest up, until the next would be too much
        names = [int(group.name) for group in kept]
        assert all(len(group.members) == counts[int(group.name)] for group in kept)
        order = sorted(small & counts.keys(), key=lambda s: (counts[s], s))
        assert names == order[: len(names)]
        most = budget if cap is None else cap * budget
        most = min(most, budget - 1) if weighted and budget < len(ids) else most
        assert len(taken) <= max(most, 0)
        assert len(names) == len(order) or len(taken) + counts[order[len(names)]] > most
    if not per_source and others:
        assert [group.name for group in others] == ["rest" if kept else "all"]
    if per_source and not random:
        assert [g.budget for g in others] == proportional([len(g.members) for g in others], budget - len(taken))


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**12), max_size=12), st.integers(0, 10**12), st.integers(0, 5))
def test_shares_are_rounded_down_and_leftovers_given_out_one_by_one(counts: list[int], budget: int, seed: int) -> None:
    total = sum(counts)
    budget = min(budget, total)
    down = [budget * count // total if total else 0 for count in counts]
    for generator in (None, seeded(seed)):
        shares = proportional(counts, budget, generator)
        assert len(shares) == len(counts)
        assert sum(shares) == budget
        for count, share, least in zip(counts, shares, down, strict=True):
            assert least <= share <= min(count, least + 1)
            if generator is not None and total and budget * count % total == 0:
                assert share == least
    assert shares == proportional(counts, budget, seeded(seed))


@pytest.mark.parametrize(
    "counts, budget, expected",
    [
        ([3, 3, 3], 4, [2, 1, 1]),  # of equals the first
        ([1, 2, 7], 5, [1, 1, 3]),  # 0.5, 1, 3.5
        ([20, 9, 3], 16, [10, 4, 2]),  # 10, 4.5, 1.5
        ([10, 10, 12], 10, [4, 3, 3]),  # 3.1, 3.1, 3.8: to a smallest share, not to the largest remainder
        ([5, 0, 5], 3, [2, 0, 1]),
        ([0, 0], 0, [0, 0]),
        ([], 0, []),
        ([10**17, 10**17 + 2], 10**17 + 1, [5 * 10**16, 5 * 10**16 + 1]),  # floats have no digits left here
    ],
)
def test_leftovers_of_the_official_code(counts: list[int], budget: int, expected: list[int]) -> None:
    assert proportional(counts, budget) == expected


@pytest.mark.parametrize(
    "counts, budget", [([6] * 20, 10), ([3, 3, 3], 4), ([20, 9, 3], 16), ([1, 1, 40, 2, 7], 13), ([5, 0, 9], 3)]
)
def test_random_leftovers_are_in_proportion_in_expectation(counts: list[int], budget: int) -> None:
    draws = 3000
    found = torch.tensor([proportional(counts, budget, seeded(seed, "split")) for seed in range(draws)]).double()
    exact = torch.tensor(counts).double() * budget / sum(counts)
    remainder = exact - exact.floor()
    assert bool(((found == exact.floor()) | (found == exact.floor() + 1)).all())
    error = found.mean(dim=0) - exact
    assert bool((error.abs() <= 4 * (remainder * (1 - remainder) / draws).sqrt() + 1e-12).all())


@pytest.mark.parametrize("selector", ["stratified", "facility_location", "k_medoids"])
def test_no_source_is_trained_too_often_or_never(selector: str) -> None:
    """20 equal sources, 10 of 120 rows: each is trained at half of the steps."""
    ids, times = torch.arange(120) % 20, 300
    features = torch.randn(120, 1, generator=seeded(1))
    trained = torch.zeros(20)
    for seed in range(times):
        trained += torch.bincount(ids[select(features, 10, ids, selector, seed=seed).indices], minlength=20)
    assert float(trained.sum()) == 10 * times
    assert bool(((trained / times - 0.5).abs() <= 4 * 0.5 / times**0.5).all())


def test_a_split_by_hand() -> None:
    ids = torch.tensor([0] * 6 + [1] * 2 + [2] * 8 + [3] * 4)
    names, small = ["a", "b", "c", "d"], frozenset({1, 3})

    def groups(budget: int, **settings: Any) -> list[tuple[str, int, bool]]:
        per_source = settings.pop("per_source", True)
        found = split(ids, budget, keeping=Keeping(small, **settings), names=names, per_source=per_source)
        return [(group.name, group.budget, group.keep) for group in found]

    # b and d are kept; the rest, 4, goes 6 : 8, the one left over to the smaller share.
    assert groups(10) == [("b", 2, True), ("d", 4, True), ("a", 2, False), ("c", 2, False)]
    assert groups(10, per_source=False) == [("b", 2, True), ("d", 4, True), ("rest", 4, False)]
    # At most half: d would make it 6. The rest, 8, goes 6 : 8 : 4.
    assert groups(10, cap=0.5) == [("b", 2, True), ("a", 3, False), ("c", 3, False), ("d", 2, False)]
    # More than the budget: the first rows in order, and of the others none.
    assert groups(5) == [("b", 2, True), ("d", 3, True), ("a", 0, False), ("c", 0, False), ("d", 0, False)]
    assert groups(2) == [("b", 2, True), ("a", 0, False), ("c", 0, False), ("d", 0, False)]
    # Weights stand for the others too, who need a row at least.
    assert groups(6, weighted=True, per_source=False) == [("b", 2, True), ("rest", 4, False)]
    assert groups(7, weighted=True, per_source=False) == [("b", 2, True), ("d", 4, True), ("rest", 1, False)]


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


@pytest.mark.parametrize("cap", [0, -0.5, 1.5, True, "half", float("nan")])
def test_a_cap_that_is_none_is_an_error(cap: Any) -> None:
    with pytest.raises(ConfigError, match="share of the budget in") as caught:
        check_cap(cap, "auto")
    assert repr(cap) in str(caught.value)


def test_a_cap_without_small_sources_is_an_error() -> None:
    check_cap(1, ["a"])
    check_cap(None, None)
    for call in (
        lambda: check_cap(0.5, None),
        lambda: select(torch.ones(4, 1), 2, ["a", "a", "b", "b"], "stratified", small_sources_cap=0.5),
        lambda: CoresetConfig(small_sources_cap=0.5),
    ):
        with pytest.raises(ConfigError, match=r"small_sources_cap 0\.5 needs small_sources\. Found none"):
            call()


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
