"""Muon's map of a gradient matrix, as one linear map that all examples share.

Shape suffixes: N rows of the large batch, P features, O outputs and R inputs of one matrix, S = min(O, R).
"""

from __future__ import annotations

import torch
from torch import Tensor

from corebatch.errors import ConfigError, InputError
from corebatch.transforms.base import Normaliser, Shapes


class Muon(Normaliser):
    """Each row's matrices g_i [O, R], mapped by the derivative of Muon's step at the large batch's mean G, and by a
    multiple of that step: g_i -> D(g_i) + W (g_i . G) / |G|^2.

    Muon (Jordan et al. 2024) steps along W = U V^T, the orthogonal factor of a momentum matrix G = U diag(s) V^T.
    That is not linear in G, and applied row by row it would make a mean of rows meaningless. This map is linear in
    the rows, the same for all, and sends the mean G to W itself: Muon's statistics are frozen at the large batch, as
    `optimizer` freezes Adam's. Where rows are left out, W changes by D to first order: with A = U^T g V, D(g) is U
    [(A - A^T) / (s_i + s_j)] V^T within the range of G and g whitened by V diag(1/s) V^T (or U diag(1/s) U^T) outside
    of it (Kenney, Laub 1991). D(G) is zero, as W does not see G's length; the second term is what lets a row count
    that points along G. It stands for momentum 0, since a trainer's buffer is not asked for, and leaves out the
    factor by a matrix's shape.

    Matrices whose longer side is less than 1.5 times the shorter are refused: there G has singular values near zero,
    W turns with every row that is left out, and no linear map says where to.

    Singular values below `floor` |G| (Frobenius) are not raised to 1, but by as much as one of `floor` |G| is: the
    default is what five Newton-Schulz steps of the original can still raise to 1 (each multiplies small ones by
    3.4445 at most). Where G is zero up to rounding, rows pass as they are.
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
        near_square = [f"{o} x {r}" for o, r in shapes if 2 * max(o, r) < 3 * min(o, r)]
        if near_square:
            raise InputError(
                "normalise 'muon' needs matrices whose longer side is at least 1.5 times the shorter: nearer to "
                f"square, no linear map is near Muon's step. Found {', '.join(near_square)}. Use normalise none."
            )
        blocks = zip(features.split(sizes, dim=1), shapes, strict=True)
        return torch.cat([self._mapped(block, *shape) for block, shape in blocks], dim=1)

    def _mapped(self, block: Tensor, outputs: int, inputs: int) -> Tensor:
        """[N, O R] -> [N, O R]."""
        given = block.view(len(block), outputs, inputs)
        rows = given if outputs >= inputs else given.mT
        # Doubles: squares of features near 1e-10 or 1e15 are inside their range.
        mean = rows.double().mean(dim=0)
        u, s, vh = torch.linalg.svd(mean, full_matrices=False)
        length = torch.linalg.vector_norm(s)
        if length <= torch.finfo(block.dtype).eps * torch.linalg.vector_norm(rows, dim=(1, 2)).mean():
            return block
        least = self.floor * length
        raised = s.clamp(min=least)
        step = s / raised  # singular values of the step
        even, odd = _slopes(s, step, float(least))
        whiten = (vh.mT / raised) @ vh
        onward = (u * step.where(s >= least, torch.zeros_like(s))) @ vh  # the step at G, less what D makes of G
        even, odd, whiten, onward, u, vh, mean = (
            each.to(block.dtype) for each in (even, odd, whiten, onward, u, vh, mean / length)
        )
        inside = u.mT @ rows
        core = inside @ vh.mT
        turned = core * (even + odd) / 2 + core.mT * (even - odd) / 2
        along = (rows / length.to(block.dtype) * mean).sum(dim=(1, 2), keepdim=True)
        mapped = rows @ whiten + u @ (turned @ vh - inside @ whiten) + along * onward
        return (mapped if outputs >= inputs else mapped.mT).flatten(1)


def _slopes(s: Tensor, step: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """By what the symmetric and the antisymmetric part of a change within the range of G are multiplied: [S, S] each,
    the divided differences (f_i - f_j) / (s_i - s_j) and (f_i + f_j) / (s_i + s_j) of the singular values f(s) of the
    step."""
    gaps, sums = s[:, None] - s, s[:, None] + s
    both_below = (torch.maximum(s[:, None], s) < least).to(s) / least
    even = ((step[:, None] - step) / gaps).where(gaps != 0, both_below).clamp(0.0, 1.0 / least)
    odd = ((step[:, None] + step) / sums).where(sums > 0, torch.full_like(sums, 1.0 / least))
    return even, odd
