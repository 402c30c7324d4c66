"""Cuts of sorted rows against all cuts that there are."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_cuts import least_maximum, least_total, pieces_of

from corebatch.batch.pieces import EVEN, SLACK, cheapest_cut, split

NO_CAP = float("inf")


@st.composite
def rows(draw):
    """Costs and widths of sorted rows, a count of pieces, and a cap that rows in equal numbers would keep."""
    widths = sorted(draw(st.lists(st.integers(1, 60), min_size=1, max_size=11)), reverse=True)
    count = min(draw(st.integers(1, 6)), len(widths))
    square = draw(st.sampled_from([0.0, 0.05]))
    costs = [width + square * width**2 for width in widths]
    return costs, widths, count, -(-len(widths) // count) * widths[0]


@settings(deadline=None)
@given(rows(), st.sampled_from([0.0, SLACK, 1.0]))
def test_no_other_cut_costs_less_or_has_a_smaller_largest_piece(case, slack):
    costs, widths, count, cap = case
    found = cheapest_cut(costs, widths, count, cap=cap, slack=slack)
    pieces, equal = pieces_of(found, costs), sum(len(part) * part[0] for part in split(costs, count))
    assert found[0] == 0
    assert all(start < end for start, end in pairwise(found))
    assert max(pieces_of(found, widths)) <= cap
    most = least_maximum(costs, widths, count, cap) * (1 + slack)
    if max(pieces) <= most * 1.002:  # the least maximum is looked for to a thousandth
        assert sum(pieces) <= least_total(costs, widths, count, cap, most) * (1 + 2 * EVEN)
    else:
        assert sum(pieces) == pytest.approx(least_total(costs, widths, count, cap, NO_CAP))
    assert least_total(costs, widths, count, cap, NO_CAP) * (1 - 1e-9) <= sum(pieces) <= equal * (1 + 1e-9)
