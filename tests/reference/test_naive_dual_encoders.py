"""NGAME's clusters and TAS-Balanced's pairs against naive twins: xclib's b_kmeans_dense, matchmaker's loader."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional

from corebatch.sampling.dual_encoders.clusters import CLOSE, ROUNDS, halved, k_means, sizes_of_halves
from corebatch.sampling.dual_encoders.tas_balanced import TasBalancedBatches, margin_bins


def vectors(count=40, width=6, seed=0):
    return functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def naive_half(rows, starts):
    """Two centers, rows sorted by which is nearer, cut in the middle, new centers; until similarities stop growing."""
    centers, before = [rows[start] for start in starts], -math.inf
    first = len(rows) - len(rows) // 2
    for _ in range(ROUNDS):
        nearer = [float(row @ (centers[0] - centers[1])) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: -nearer[i])
        halves = order[:first], order[first:]
        sums = [sum(rows[i] for i in half) for half in halves]
        similar = sum(float(total.norm()) for total in sums) / len(rows)
        centers = [total / total.norm() for total in sums]
        if similar - before < CLOSE:
            break
        before = similar
    return halves


@pytest.mark.parametrize("count", [2, 7, 40])
def test_one_split_is_the_naive_one(count):
    own = vectors(count)
    starts = torch.rand(1, count, generator=torch.Generator().manual_seed(5)).argsort(dim=1)[0, :2].tolist()
    found = halved(own, count - count // 2, torch.Generator().manual_seed(5))
    expected = naive_half(list(own), starts)
    sizes = sizes_of_halves(count, count - count // 2)
    assert [set(part.tolist()) for part in found.split(sizes)] == [set(half) for half in expected]


def test_clusters_are_halves_of_halves():
    own = vectors(333)
    for most in (1, 2, 5, 64, 333):
        rows, sizes = halved(own, most, torch.Generator().manual_seed(0)), sizes_of_halves(333, most)
        assert sorted(rows.tolist()) == list(range(333))
        assert sum(sizes) == 333
        assert most / 2 <= min(sizes) <= max(sizes) <= most


def test_k_means_is_lloyds():
    own = vectors(60)
    found = k_means(own, 5, torch.Generator().manual_seed(1))
    centers = [own[i] for i in torch.randperm(60, generator=torch.Generator().manual_seed(1))[:5].tolist()]
    for _ in range(ROUNDS):
        nearest = [min(range(5), key=lambda c: float((row - centers[c]).square().sum())) for row in own]
        members = [[i for i, c in enumerate(nearest) if c == cluster] for cluster in range(5)]
        centers = [own[m].mean(dim=0) if m else centers[c] for c, m in enumerate(members)]
    assert found.tolist() == nearest


def test_bins_are_the_official_ones():
    generator = torch.Generator().manual_seed(0)
    queries = torch.arange(20).repeat_interleave(9)
    margins = torch.randn(180, dtype=torch.float64, generator=generator)
    found = margin_bins(queries, margins, 10)
    for query in range(20):
        own = margins[queries == query].numpy()
        edges = np.linspace(own.min(), own.max(), 11)[:-1]
        assert found[queries == query].tolist() == (np.digitize(own, edges) - 1).tolist()
    assert margin_bins(torch.tensor([0, 0, 1]), torch.tensor([2.0, 2.0, 5.0]).double(), 10).tolist() == [0, 0, 0]


def test_a_pair_is_of_an_evenly_drawn_bin():
    """Of one query with bins of 1, 2 and 7 pairs; and topics come evenly, whatever their size."""
    queries = torch.tensor([0] * 10 + list(range(1, 12)))
    bins = torch.tensor([0, 4, 4, *[9] * 7, *[0] * 11])
    sampler = TasBalancedBatches(queries, torch.tensor([0, *[1] * 11]), bins, batch_size=1)
    rows = Counter()
    for epoch in range(400):
        sampler.set_epoch(epoch)
        rows.update(row for batch in sampler for row in batch)
    total = sum(rows.values())
    assert sum(rows[row] for row in range(10)) / total == pytest.approx(1 / 2, abs=0.03)
    mine = sum(rows[row] for row in range(10))
    shares = [sum(rows[row] for row in part) / mine for part in (range(1), range(1, 3), range(3, 10))]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.04)
    assert min(rows[row] for row in range(3, 10)) > 0.7 * mine / 21
