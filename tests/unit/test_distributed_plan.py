"""Which rank trains which row: equal numbers, few moves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corebatch.trainer.distributed import shares


@settings(deadline=None)
@given(
    st.integers(1, 6).flatmap(lambda world: st.tuples(st.lists(st.integers(0, world - 1), max_size=40), st.just(world)))
)
def test_ranks_get_equal_numbers_with_as_few_moves_as_possible(case: tuple[list[int], int]) -> None:
    owners, world = case
    trained_by, moving = shares(owners, world)
    counts = [trained_by.count(rank) for rank in range(world)]
    assert sum(counts) == len(owners)
    assert max(counts) - min(counts) <= 1
    assert moving == [i for i, (owner, rank) in enumerate(zip(owners, trained_by, strict=True)) if owner != rank]
    # The ranks that hold most get the larger shares; what is above a share has to move, and nothing else.
    held = sorted((owners.count(rank) for rank in range(world)), reverse=True)
    base, more = divmod(len(owners), world)
    assert len(moving) == sum(max(0, count - base - (i < more)) for i, count in enumerate(held))


@pytest.mark.parametrize(
    "owners, world, trained_by, moving",
    [
        ([], 2, [], []),
        ([0, 0, 0], 1, [0, 0, 0], []),
        ([1, 0, 1, 1], 2, [1, 0, 1, 0], [3]),
        ([1, 1, 0], 2, [1, 1, 0], []),
        ([2, 2, 2], 3, [2, 0, 1], [1, 2]),
    ],
)
def test_plans_by_hand(owners: list[int], world: int, trained_by: list[int], moving: list[int]) -> None:
    assert shares(owners, world) == (trained_by, moving)
