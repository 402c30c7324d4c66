"""Narrow features whose inner products are those of wide ones, nearly."""

from __future__ import annotations

import torch
from torch import Tensor


def count_sketch(features: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """[N, P] -> [N, width]: each column is added, with a random sign, to one of `width` sums.

    Inner products are kept in expectation, with a relative deviation of about 1 / sqrt(width) (Charikar, Chen,
    Farach-Colton 2002; feature hashing, Weinberger et al. 2009, arXiv 0902.2206). Features no wider than `width` are
    returned as they are.
    """
    columns = features.shape[1]
    if columns <= width:
        return features
    places = torch.randint(width, (columns,), generator=generator)
    signs = torch.randint(2, (columns,), generator=generator) * 2 - 1
    # Each sum's columns side by side, filled up with a column of zeros: `index_add_` would add them in another order
    # at each run on a GPU.
    counts = places.bincount(minlength=width)
    order = places.argsort(stable=True)
    nth = torch.arange(columns) - (counts.cumsum(0) - counts)[places[order]]
    members = torch.full((width, int(counts.max())), columns)
    members[places[order], nth] = order
    signed = torch.nn.functional.pad(features * signs.to(features), (0, 1))
    return signed[:, members.to(features.device)].sum(dim=2)
