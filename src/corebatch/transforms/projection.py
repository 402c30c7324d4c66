"""A Gaussian random projection, the same for every row and step."""

from __future__ import annotations

import torch
from torch import Tensor

from corebatch.options import check_count
from corebatch.transforms.base import Sparsifier


class Projection(Sparsifier):
    """features @ G / sqrt(dim), G standard normal from `seed`: inner products are kept in expectation
    (Johnson and Lindenstrauss 1984). Narrower features pass as they are."""

    name = "projection"

    def __init__(self, *, dim: int = 1024, seed: int = 0) -> None:
        check_count("projection's dim", dim)
        self.dim = dim
        self.seed = seed
        self._matrix: Tensor | None = None

    def __call__(self, features: Tensor, source_ids: Tensor) -> Tensor:
        width = features.shape[1]
        if width <= self.dim:
            return features
        if self._matrix is None or self._matrix.shape[0] != width:
            generator = torch.Generator().manual_seed(self.seed)
            self._matrix = torch.randn(width, self.dim, generator=generator) / self.dim**0.5
        self._matrix = self._matrix.to(features)
        return features @ self._matrix
