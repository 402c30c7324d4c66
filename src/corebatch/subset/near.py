"""Which rows lie near each other, of features that need not fit into memory."""

from __future__ import annotations

import torch
from torch import Tensor

from corebatch.subset.matrix import Matrix

WIDTH = 16
"""Columns by which blocks are made: inner products are kept roughly (Johnson, Lindenstrauss), which is enough for who
comes into which block; within blocks all columns count."""
BLOCK = 1024
"""The most rows of a block, where there are more than twice as many: work grows with rows times this."""


def reduced(matrix: Matrix, generator: torch.Generator) -> Tensor:
    """Features in at most WIDTH columns, by a Gaussian projection where there are more: float64 [N, WIDTH], read block
    by block."""
    if matrix.width <= WIDTH:
        return torch.cat([block for _, block in matrix.blocks()]).double()
    along = torch.randn(matrix.width, WIDTH, generator=generator) / WIDTH**0.5
    return torch.cat([(block @ along).double() for _, block in matrix.blocks()])


def norms(matrix: Matrix) -> Tensor:
    """Euclidean norms of the rows: float64 [N]."""
    return torch.cat([torch.linalg.vector_norm(block.double(), dim=1) for _, block in matrix.blocks()])
