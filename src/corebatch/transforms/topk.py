"""Keep the coordinates that matter for a source's mean."""

from __future__ import annotations

import torch
from torch import Tensor

from corebatch.options import check_count
from corebatch.transforms.base import Sparsifier


class TopK(Sparsifier):
    """For each source, the h coordinates with the largest |mean over the source's rows|.

    CoLM, arXiv 2407.19580 (h = 2,560). Different sources keep different coordinates, so the rows of the
    result [N, min(h, P)] are comparable within one source only; ties between coordinates go to the first.
    """

    name = "topk"

    def __init__(self, *, h: int = 2560) -> None:
        check_count("topk's h", h)
        self.h = h

    def __call__(self, features: Tensor, source_ids: Tensor) -> Tensor:
        if features.shape[1] <= self.h:
            return features
        kept = features.new_empty(len(features), self.h)
        ids = source_ids.to(features.device)
        for source in torch.unique(ids):
            rows = ids == source
            size = features[rows].mean(dim=0).abs()
            order = torch.sort(size, descending=True, stable=True).indices[: self.h]
            kept[rows] = features[rows][:, order.sort().values]
        return kept
