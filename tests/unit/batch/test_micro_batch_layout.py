"""Which rank trains which rows in which micro-batch: every row once, equal work, and what the record says of it."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corebatch.batch.cuts import Cut
from corebatch.batch.layout import Cutting, Layout
from corebatch.batch.pool import Pool
from corebatch.distributed.balance import share_pieces
from corebatch.errors import DataError
from corebatch.model.rows import Padding

ROWS = 4
"""Of a micro-batch of the loader."""
BY = ("plain", "length", "positions", "flops")


def drawn(lengths: list[int], world: int, *, width: int | None = None) -> Pool:
    """Rows that a loader has dealt to ranks, ROWS at a time; `width`: to which it pads all batches."""
    count = len(lengths)
    ids, sizes = torch.arange(count), torch.tensor(lengths)
    ranks, rows = ids % world, ids // world
    batches = rows // ROWS
    longest = [int(sizes[(ranks == ranks[i]) & (batches == batches[i])].max()) for i in range(count)]
    return Pool(
        ids=ids * 3, sources=ids % 2, lengths=sizes, tokens=sizes, ranks=ranks, rows=rows, batches=batches,
        widths=torch.tensor(longest) if width is None else torch.full_like(ids, width),
        eligible=torch.ones(count, dtype=torch.bool),
    )  # fmt: skip


def cutting(by: str = "positions", *, world: int = 1, most: int | None = None, **settings: object) -> Cutting:
    made = {"rows": ROWS, "every_row": True, "stays": False, "padding": Padding(token=0), **settings}
    return Cutting(cut=Cut(by=by, most=most), world=world, **made)  # type: ignore[arg-type]


def quadratic(width: int) -> float:
    return width + 0.05 * width**2


@st.composite
def cases(draw):
    world, packed, every_row = draw(st.integers(1, 4)), draw(st.booleans()), draw(st.booleans())
    by = draw(st.sampled_from(BY))
    lengths = draw(st.lists(st.integers(1, 60), min_size=world, max_size=48))
    asked = -(-len(lengths) // (world * ROWS)) if every_row else draw(st.integers(1, 5))
    most = draw(st.sampled_from([None, 60, 130])) if by in ("positions", "flops") else None
    made = cutting(
        by, world=world, most=most, every_row=every_row, stays=draw(st.booleans()) and not every_row, packed=packed,
        padding=Padding(token=0, multiple_of=draw(st.sampled_from([1, 4]))), cost=quadratic,
    )  # fmt: skip
    chosen = (
        range(len(lengths)) if every_row else sorted(draw(st.sets(st.sampled_from(range(len(lengths))), min_size=1)))
    )
    return lengths, torch.tensor(list(chosen)), asked, made


def positions(made: Cutting, layout: Layout, pool: Pool, chosen: torch.Tensor) -> list[int]:
    """Of each micro-batch, as it will be put together; empty ones are left out."""
    lengths = pool.lengths[chosen].tolist()
    sizes = []
    for piece in chain(*layout.pieces):
        each = [lengths[row] for row in piece]
        multiple = made.padding.multiple_of
        if each:
            sizes.append(sum(each) if made.packed else len(each) * -(-max(each) // multiple) * multiple)
    return sizes


@settings(deadline=None, max_examples=200)
@given(cases())
def test_every_row_is_trained_once_by_the_rank_that_is_said_to(case):
    lengths, chosen, asked, made = case
    pool = drawn(lengths, made.world)
    layout = made.lay_out(pool, chosen, asked)
    assert len(layout.pieces) == made.world
    assert len({len(own) for own in layout.pieces}) == 1  # ranks run the same forwards
    assert len(layout.pieces[0]) % asked == 0
    assert sorted(chain(*chain(*layout.pieces))) == list(range(len(chosen)))
    for rank, own in enumerate(layout.pieces):
        assert sorted(chain(*own)) == layout.shares.of(rank)
    assert list(layout.shares.owners) == pool.ranks[chosen].tolist()
    assert layout.empty == sum(not piece for piece in chain(*layout.pieces))
    assert layout == made.lay_out(pool, chosen, asked)  # on every rank alike
    # What the record says of it.
    sizes = positions(made, layout, pool, chosen)
    assert layout.positions >= sum(sizes)
    if not layout.empty:
        assert (layout.positions, layout.largest) == (sum(sizes), max(sizes))
    plain = cutting("plain", world=made.world, every_row=made.every_row, packed=made.packed, padding=made.padding)
    as_drawn = positions(made, plain.lay_out(pool, chosen, asked), pool, chosen)
    if made.packed or made.padding.multiple_of == 1:
        if made.every_row:
            assert (layout.positions_plain, layout.largest_plain) == (sum(as_drawn), max(as_drawn))
        if made.cut.by in ("positions", "flops") and made.every_row:
            assert max(sizes) <= layout.largest_plain
        if made.cut.by == "positions" and made.every_row and made.cut.most is None:
            assert sum(sizes) <= layout.positions_plain
    if made.cut.most is not None:
        assert max(sizes) <= made.cut.most


def test_plain_is_what_the_loader_made():
    pool = drawn([5, 9, 2, 7, 3, 8, 1, 6, 4], 1)
    layout = cutting("plain").lay_out(pool, torch.arange(9), 3)
    assert layout.pieces == [[[0, 1, 2, 3], [4, 5, 6, 7], [8]]]
    assert (layout.positions, layout.largest) == (4 * 9 + 4 * 8 + 4, 36)
    chosen = cutting("plain", every_row=False).lay_out(pool, torch.tensor([1, 4, 5, 7, 8]), 2)
    assert chosen.pieces == [[[0, 1, 2], [3, 4]]]


def test_a_collator_that_pads_to_one_width_is_seen():
    """What a loader pads further than it must is what the plain Trainer trains."""
    layout = cutting().lay_out(drawn([5, 9, 2, 7, 3, 8, 1, 6], 1, width=20), torch.arange(8), 2)
    assert (layout.positions_plain, layout.largest_plain) == (8 * 20, 4 * 20)
    assert layout.positions < 60


def test_rounded_widths_are_below_what_the_model_can_take():
    pool = drawn([30, 29, 17, 16], 1)
    made = Cutting(
        cut=Cut(by="positions", multiple=16), world=1, rows=ROWS, every_row=True, stays=False,
        padding=Padding(token=0, multiple_of=3), longest=40,
    )  # fmt: skip
    assert made.widths.padding == Padding(token=0, multiple_of=48, longest=40)
    assert made.plain.padding.multiple_of == 3
    assert made.lay_out(pool, torch.arange(4), 1).positions == 4 * 40


def test_rows_stay_where_scoring_kept_them():
    pool = drawn(torch.arange(1, 33).tolist(), 2)
    chosen = torch.arange(32)[torch.arange(32) % 8 < 5]
    moved = cutting(world=2, every_row=False).lay_out(pool, chosen, 2)
    stays = cutting(world=2, every_row=False, stays=True).lay_out(pool, chosen, 2)
    held = pool.ranks[chosen].tolist()
    assert len(stays.shares.moving) == abs(held.count(0) - held.count(1)) // 2 < len(moved.shares.moving)


def test_a_row_above_the_cap_is_named():
    pool = drawn([5, 9, 50, 7], 1)
    with pytest.raises(DataError, match=r"at most 40 positions.*example 6 of the train set alone has 50, of 50 tokens"):
        cutting(most=40).lay_out(pool, torch.arange(4), 1)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_pieces_are_given_out_in_equal_numbers(world, rounds, data):
    work = data.draw(
        st.lists(st.tuples(st.floats(1, 50), st.floats(1, 50)), min_size=world * rounds, max_size=world * rounds)
    )
    homes = [[data.draw(st.integers(0, 5)) for _ in range(world)] for _ in work]
    given_out = share_pieces(work, homes)
    assert sorted(chain(*given_out)) == list(range(len(work)))
    assert {len(own) for own in given_out} == {rounds}
    assert given_out == share_pieces(work, homes)


def test_ranks_get_the_pieces_that_they_hold():
    assert share_pieces([(4.0,)] * 4, [[0, 3], [3, 0], [1, 2], [2, 1]]) == [[1, 3], [0, 2]]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("world", [2, 4])
def test_tokens_of_ranks_are_within_two_per_cent(world, packed):
    """Lengths as in a mixture of mathematics: many short rows, a long tail."""
    generator = torch.Generator().manual_seed(0)
    made = cutting(world=world, packed=packed, every_row=False, rows=8)
    for _ in range(10):
        lengths = (torch.randn(64 * world, generator=generator) * 0.65 + 4.5).exp().clamp(17, 512).long().tolist()
        layout = made.lay_out(drawn(lengths, world), torch.arange(64 * world), 8)
        assert layout.shares.imbalance < 0.02
        assert len({len(own) for own in layout.pieces}) == 1
