"""Muon's map of a gradient matrix, as one linear map that all examples share.

Shape suffixes: N rows of the large batch, P features, O outputs and R inputs of one matrix, S = min(O, R).
"""

from __future__ import annotations

import torch
from torch import Tensor

from corebatch.errors import ConfigError, InputError
from corebatch.transforms.base import Normaliser, Shapes


class Muon(Normaliser):
    """Each row's matrices g_i [O, R], whitened on their smaller side by the large batch's mean G = U diag(s) V^T:
    g_i -> g_i V diag(1/s) V^T where O >= R, else U diag(1/s) U^T g_i.

    Muon (Jordan et al. 2024) steps along U V^T, the orthogonal factor of a momentum matrix. That map is not linear in
    G, and applied row by row it would make a mean of rows meaningless. This one is linear in the rows, the same for
    all, and sends the mean G to U V^T itself: Muon's statistics are frozen at the large batch, as `optimizer` freezes
    Adam's. The smaller side, because there G has full rank and no part of a row is lost; for the part of a row outside
    G's larger side it is Muon's derivative at G exactly. It stands for momentum 0, since a trainer's buffer is not
    asked for, and leaves out the factor by a matrix's shape.

    Singular values below `floor` |G| (Frobenius) count as that: the default is what five Newton-Schulz steps of the
    original can still raise to 1 (each multiplies small ones by 3.4445 at most). Where G is zero up to rounding, rows
    pass as they are.
    """

    name = "muon"
    linear = True
    needs_shapes = True

    def __init__(self, *, floor: float = 3.4445**-5) -> None:
        if not 0 < floor <= 1:
            raise ConfigError(f"muon's floor should be in (0, 1]. Found {floor!r}.")
        self.floor = float(floor)

    def __call__(self, features: Tensor, second_moments: Tensor | None = None, shapes: Shapes | None = None) -> Tensor:
        if shapes is None:
            raise InputError(
                "normalise 'muon' needs features that are gradients of matrices: scorer 'last_layer' on LoRA or on "
                "projections below its max_dim. Found features that are not. Use normalise none."
            )
        sizes = [outputs * inputs for outputs, inputs in shapes]
        if sum(sizes) != features.shape[1]:
            raise InputError(
                f"Matrices of {', '.join(f'{o} x {r}' for o, r in shapes)} are {sum(sizes)} features. "
                f"Found {features.shape[1]}."
            )
        blocks = zip(features.split(sizes, dim=1), shapes, strict=True)
        return torch.cat([self._whiten(block, *shape) for block, shape in blocks], dim=1)

    def _whiten(self, block: Tensor, outputs: int, inputs: int) -> Tensor:
        """[N, O R] -> [N, O R]."""
        rows = block.view(len(block), outputs, inputs)
        # Doubles: squares of features near 1e-10 or 1e15 are inside their range.
        u, s, vh = torch.linalg.svd(rows.double().mean(dim=0), full_matrices=False)
        length = torch.linalg.vector_norm(s)
        if length <= torch.finfo(block.dtype).eps * torch.linalg.vector_norm(rows, dim=(1, 2)).mean():
            return block
        side = vh.mT if outputs >= inputs else u
        whiten = ((side / s.clamp(min=self.floor * length)) @ side.mT).to(block.dtype)
        return (rows @ whiten if outputs >= inputs else whiten @ rows).flatten(1)
