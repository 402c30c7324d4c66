"""Rows in pieces: each row once, as many pieces as asked for, caps held, no more positions than in equal numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corebatch.batch.cuts import Cut, make_cut
from corebatch.batch.pieces import Widths, by_length, cheapest_cut, cut_rows, parts_needed, split
from corebatch.errors import ConfigError, DataError
from corebatch.model.flops import ModelFlops, causal_context
from corebatch.model.rows import Padding

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)
MODEL = ModelFlops(weights=200.0, trained_weights=150.0, attention=40.0)


def flops(width: int) -> float:
    return width * MODEL.train(causal_context(width, 1))


COSTS = {"positions": float, "flops": flops}


@st.composite
def cases(draw):
    lengths = draw(LENGTHS)
    count = draw(st.integers(1, 9))
    packed = draw(st.booleans())
    widths = Widths(
        padding=Padding(token=0, multiple_of=draw(st.sampled_from([1, 1, 8]))),
        packed=packed,
        cost=COSTS[draw(st.sampled_from(["positions", "flops"]))],
    )
    return lengths, count, widths


def largest(pieces, lengths, widths):
    return max(widths.positions([lengths[row] for row in piece]) for piece in pieces)


def total(pieces, lengths, widths):
    return sum(widths.positions([lengths[row] for row in piece]) for piece in pieces)


@settings(deadline=None)
@given(cases())
def test_every_row_once_within_the_largest_plain_piece(case):
    lengths, count, widths = case
    ids, rows = list(range(len(lengths))), range(len(lengths))
    order, plain = by_length(rows, lengths, ids), split(rows, count)
    cap = largest(plain, lengths, widths)
    made = cut_rows(Cut(by="positions"), order, lengths, count, widths, plain, cap=cap)
    assert len(made) == count
    assert sorted(row for piece in made for row in piece) == list(rows)
    assert sum(not piece for piece in made) == max(0, count - len(lengths))
    assert largest(made, lengths, widths) <= cap
    assert made == cut_rows(Cut(by="positions"), order, lengths, count, widths, plain, cap=cap)
    if widths.cost is float:
        assert total(made, lengths, widths) <= total(plain, lengths, widths)
        equal = split(order, count)
        if largest(equal, lengths, widths) <= cap:
            assert total(made, lengths, widths) <= total(equal, lengths, widths)


@settings(deadline=None)
@given(cases(), st.integers(1, 400))
@example(([1, 1, 1, 2, 13, 15], 1, Widths(padding=Padding(token=0), packed=True, cost=flops)), 17)
def test_a_cap_has_the_fewest_parts(case, most):
    lengths, count, widths = case
    ids = list(range(len(lengths)))
    order = by_length(ids, lengths, ids)
    cut = Cut(by="positions", most=most)
    if widths.of(max(lengths)) > most:
        with pytest.raises(
            DataError, match=rf"example {order[0]} of the train set alone has {widths.of(max(lengths))}"
        ):
            parts_needed(cut, order, lengths, ids, count, widths)
        return
    parts = parts_needed(cut, order, lengths, ids, count, widths)
    plain = split(ids, count)
    cap = -(-len(lengths) // count) * widths.of(max(lengths))
    made = cut_rows(cut, order, lengths, parts * count, widths, plain, cap=cap)
    assert len(made) == parts * count
    assert sorted(row for piece in made for row in piece) == ids
    assert largest(made, lengths, widths) <= most
    if parts > 1 and not widths.packed:  # with one part fewer the rows do not fit, however they are cut
        fewest, row, each = 0, 0, [widths.of(lengths[row]) for row in order]
        while row < len(each):
            row, fewest = row + most // each[row], fewest + 1
        assert fewest > (parts - 1) * count


def test_equal_lengths_are_cut_evenly():
    costs = [8.0] * 100
    found = cheapest_cut(costs, [8] * 100, 16, cap=8 * 7)
    assert sorted(end - start for start, end in pairwise(found)) == [6] * 12 + [7] * 4


def test_long_rows_stand_with_fewer_others():
    lengths = [9, 3, 1, 8, 2, 1, 3, 2]
    order = by_length(range(8), lengths, range(8))
    made = cut_rows(Cut(by="positions"), order, lengths, 3, Widths(padding=Padding(token=0)), [], cap=27)
    assert made == [[0, 3], [1, 6], [4, 7, 2, 5]]


@pytest.mark.parametrize(
    "given, plain",
    [
        ("plain", "plain"),
        ({"by": "length"}, "length"),
        ({"most": 512}, {"by": "positions", "most": 512}),
        ({"by": "flops", "multiple": 8, "most": "none"}, {"by": "flops", "multiple": 8}),
        ("auto", "positions"),
    ],
)
def test_a_cut_in_its_shortest_form(given, plain):
    made = make_cut(given, pool_factor=2)
    assert made.plain() == plain
    assert make_cut(plain, pool_factor=1) == made


@pytest.mark.parametrize("given", ["positoins", {"by": "length", "most": 5}, {"mos": 5}, {"most": 0}, 3])
def test_a_cut_that_is_none(given):
    with pytest.raises(ConfigError, match=r"coreset\.micro_batches"):
        make_cut(given, pool_factor=2)
