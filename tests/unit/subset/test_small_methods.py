"""Methods that look at no feature."""

import torch

from corebatch.subset import keep_rows


def test_random_is_uniform():
    counts = torch.zeros(10)
    for seed in range(600):
        counts[keep_rows(10, 0.3, "random", seed=seed).rows] += 1
    assert float((counts / 600 - 0.3).abs().max()) < 0.08  # four standard deviations


def test_stratified_has_every_sources_share():
    sources = [0] * 70 + [1] * 25 + [2] * 5
    kept = torch.tensor([0.0, 0, 0])
    for seed in range(200):
        rows = keep_rows(100, 0.1, "stratified", sources=sources, seed=seed).rows
        counts = torch.bincount(torch.tensor(sources)[rows], minlength=3)
        assert counts[0] == 7
        assert 2 <= counts[1] <= 3
        kept += counts
    assert float((kept / 200 - torch.tensor([7, 2.5, 0.5])).abs().max()) < 0.15
