"""Which rank trains which row: equal numbers, few moves, near-equal tokens; and rows as bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corebatch.distributed.balance import BALANCED, share
from corebatch.distributed.exchange import RowFormat, exchange_rows
from corebatch.distributed.ranks import Ranks
from corebatch.errors import DataError
from corebatch.model.rows import take_rows
from corebatch.types import ID


@st.composite
def cases(draw):
    world = draw(st.integers(1, 6))
    owners = draw(st.lists(st.integers(0, world - 1), max_size=40))
    lengths = draw(st.lists(st.integers(1, 99), min_size=len(owners), max_size=len(owners)))
    sources = draw(st.lists(st.integers(0, 3), min_size=len(owners), max_size=len(owners)))
    return owners, lengths, sources, world


@settings(deadline=None)
@given(cases(), st.booleans())
def test_ranks_get_equal_numbers(case, balance) -> None:
    owners, lengths, sources, world = case
    shares = share(owners, lengths, sources, world, balance=balance)
    counts = [len(shares.of(rank)) for rank in range(world)]
    assert sum(counts) == len(owners)
    assert max(counts) - min(counts) <= 1
    assert shares.moving == [i for i, (a, b) in enumerate(zip(owners, shares.trained_by, strict=True)) if a != b]
    assert share(owners, lengths, sources, world, balance=balance) == shares


@settings(deadline=None)
@given(cases())
def test_without_balancing_as_few_rows_move_as_can(case) -> None:
    owners, lengths, sources, world = case
    shares = share(owners, lengths, sources, world, balance=False)
    # The ranks that hold most get the larger shares; what is above a share has to move, and nothing else.
    held = sorted((owners.count(rank) for rank in range(world)), reverse=True)
    base, more = divmod(len(owners), world)
    assert len(shares.moving) == sum(max(0, count - base - (i < more)) for i, count in enumerate(held))


@settings(deadline=None)
@given(cases())
def test_balancing_never_makes_it_worse(case) -> None:
    owners, lengths, sources, world = case
    before, after = (share(owners, lengths, sources, world, balance=balance) for balance in (False, True))
    spread = [[sum(s.lengths[p] for p in s.of(rank)) for rank in range(world)] for s in (before, after)]
    assert max(spread[1]) <= max(spread[0])
    assert min(spread[1]) >= min(spread[0])


def test_tokens_of_real_batches_are_near_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    for world in (2, 4, 8):
        for _ in range(20):
            lengths = torch.randint(20, 400, (16 * world,), generator=generator).tolist()
            owners = torch.randint(world, (16 * world,), generator=generator).tolist()
            assert share(owners, lengths, [0] * len(owners), world).imbalance <= 2 * BALANCED


def test_balanced_ranks_are_left_alone() -> None:
    assert share([0, 1, 0, 1], [10, 10, 11, 11], [0, 0, 1, 1], 2).moving == []


@pytest.mark.parametrize(
    "owners, lengths, world, trained_by",
    [
        ([], [], 2, []),
        ([0, 0, 0], [1, 2, 3], 1, [0, 0, 0]),
        ([1, 0, 1, 1], [5, 5, 5, 5], 2, [0, 0, 1, 1]),  # of equals the first
        ([1, 1, 0], [4, 4, 8], 2, [1, 1, 0]),
        ([0, 0, 0, 1], [9, 1, 5, 5], 2, [0, 0, 1, 1]),  # what leaves brings both to the mean
        ([0, 0, 1, 1], [9, 8, 2, 1], 2, [1, 0, 0, 1]),  # a pair changes places
    ],
)
def test_plans_by_hand(owners: list[int], lengths: list[int], world: int, trained_by: list[int]) -> None:
    assert list(share(owners, lengths, [0] * len(owners), world).trained_by) == trained_by


def test_what_piles_up_goes_first() -> None:
    """Rank 0 holds all four rows of the small source 7; those are what it gives away."""
    owners, sources = [0] * 8 + [1] * 2, [7, 7, 7, 7, 1, 1, 1, 1, 1, 1]
    shares = share(owners, [10] * 10, sources, 2)
    assert [sources[p] for p in shares.moving] == [7, 7, 1]


def rows_of_all_kinds(rows: int = 3, width: int = 5):
    lengths = torch.arange(rows) % width + 1
    mask = (torch.arange(width) < lengths[:, None]).long()
    return {
        "input_ids": torch.arange(rows * width).reshape(rows, width),
        "labels": torch.arange(rows * width).reshape(rows, width) * mask - 100 * (1 - mask),
        "attention_mask": mask,
        "score": torch.rand(rows, dtype=torch.float64),
        "half": torch.rand(rows, width, 2).bfloat16(),
        "flag": torch.arange(rows) % 2 == 0,
        "pair": torch.rand(rows, 7),
        ID: torch.arange(rows),
    }


def test_a_row_comes_out_as_it_went_in() -> None:
    batch = rows_of_all_kinds()
    row_format = RowFormat.of([batch]).agree(Ranks())
    for row in take_rows([batch], range(3), row_format.by_token):
        length = len(row["input_ids"])
        written = row_format.write(row)
        assert written.dtype == torch.uint8
        assert len(written) == row_format.size(length)
        back = row_format.read(torch.cat([written, written])[: len(written)], length, torch.device("cpu"))
        assert back.keys() == row.keys()
        for key, value in row.items():
            assert back[key].dtype == value.dtype
            assert torch.equal(back[key], value)


def test_rows_to_oneself() -> None:
    batch = rows_of_all_kinds()
    row_format = RowFormat.of([batch])
    rows = take_rows([batch], [2, 0], row_format.by_token)
    ranks = Ranks()
    moves = [(0, 0, len(row["input_ids"])) for row in rows]
    arrived = exchange_rows(ranks, row_format, moves, dict(enumerate(rows)), torch.device("cpu"))
    assert all(torch.equal(arrived[i][key], rows[i][key]) for i in range(2) for key in rows[i])
    assert ranks.take_sent() == {"rows": sum(row_format.size(length) for _, _, length in moves)}
    assert ranks.take_sent() == {}


def test_a_key_that_comes_and_goes_is_named() -> None:
    batch = rows_of_all_kinds()
    row_format = RowFormat.of([batch])
    row_format.check([batch])
    with pytest.raises(DataError, match=r"score torch.float64.*Found.*examples \[0, 1, 2\]"):
        row_format.check([batch, {key: value for key, value in batch.items() if key != "score"}])
    with pytest.raises(DataError, match=r"Found.*score torch.float32"):
        row_format.check([{**batch, "score": batch["score"].float()}])
