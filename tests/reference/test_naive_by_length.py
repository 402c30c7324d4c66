import random
from collections import Counter

import naive_by_length as naive
import pytest
import torch

from corebatch.sampling.buckets import Buckets, two_dimensional
from corebatch.sampling.pieces import cut_document
from corebatch.sampling.units import UnitSampler


def test_pieces_are_the_naive_ones():
    for length in [*range(1, 200), 1023, 1024, 1025]:
        tokens = list(range(length))
        for shortest, longest in ((1, 16), (4, 16), (8, 64), (16, 16)):
            expected = naive.cut_document(tokens, shortest.bit_length() - 1, longest.bit_length() - 1)
            found = [tokens[piece.start : piece.stop] for piece in cut_document(length, shortest, longest)]
            assert found == expected


def test_drawn_pieces_are_drawn_as_the_official_code_draws_them():
    """Powers with probabilities 1, 2, 4, ... from the longest down, while what is left is twice the longest."""
    generator, counts = torch.Generator().manual_seed(0), Counter()
    for _ in range(400):
        pieces = cut_document(1000, 4, 16, generator)
        drawn = [len(piece) for piece in pieces if 1000 - piece.start >= 32]
        powers = iter([size.bit_length() - 1 for size in drawn])
        assert [list(piece) for piece in pieces] == naive.cut_document(
            list(range(1000)), 2, 4, lambda p=powers: next(p)
        )
        counts.update(drawn)
    total = sum(counts.values())
    assert {size: count / total for size, count in counts.items()} == pytest.approx(
        {16: 1 / 7, 8: 2 / 7, 4: 4 / 7}, abs=0.02
    )


@pytest.mark.parametrize("odds", [[1.0, 1.0, 1.0], [4.0, 2.0, 1.0], [1e4, 100.0, 1.0]])
def test_buckets_come_as_in_the_naive_draws(odds):
    """The first of all, and the mean place of each bucket, over 4,000 epochs."""
    groups = [3, 5, 2]
    of = torch.repeat_interleave(torch.arange(3), torch.tensor(groups))
    buckets = Buckets(
        of=of, bounds=torch.ones(3, 1).long(), rows=torch.ones(3).long(), odds=torch.tensor(odds).double()
    )
    sampler, source = UnitSampler(buckets), random.Random(0)
    found = [sampler.order(epoch).tolist() for epoch in range(4000)]
    expected = [naive.order_of_buckets(groups, odds, source) for _ in range(4000)]
    for orders in (found, expected):
        assert all(Counter(order) == Counter(dict(enumerate(groups))) for order in orders)
    for place in range(10):
        one, other = (Counter(order[place] for order in orders) for orders in (found, expected))
        for bucket in range(3):
            assert one[bucket] / 4000 == pytest.approx(other[bucket] / 4000, abs=0.045)


def test_each_row_is_in_the_smallest_bucket_of_two_dimensions():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(1, 60, (500,), generator=generator)
    outputs = torch.randint(1, 30, (500,), generator=generator) + inputs // 4
    made = two_dimensional(inputs, outputs, buckets=6, sub_buckets=3)
    bounds = made.bounds.tolist()
    for row, lengths in enumerate(zip(inputs.tolist(), outputs.tolist(), strict=True)):
        assert int(made.of[row]) == naive.smallest_bucket(bounds, lengths)
