"""How long each example's gradient of the last value projections is."""

from __future__ import annotations

import torch
from torch import Tensor

from corebatch.scoring.value_gradients import NumBlocks, ValueGradients, ValueGradientScorer


class GradientNorm(ValueGradientScorer):
    """Features [N, 1]: the Euclidean norm of the gradient that `last_layer` gives, exact where that is projected.

    Sampling in proportion to the gradient's norm has the least variance of all ways to sample single examples (Zhao
    and Zhang 2015; Katharopoulos and Fleuret 2018, arXiv 1803.00942, bound it by the last layer's). The gradient
    itself is made only where that is cheaper than the Gram matrices of its two factors, T (O + R) >= O R:
    |sum_t delta_t (x) a_t|^2 = sum_ts (delta_t . delta_s)(a_t . a_s).
    """

    name = "gradient_norm"

    def __init__(self, *, num_blocks: NumBlocks = "auto") -> None:
        super().__init__(num_blocks=num_blocks)

    def features(self, gradients: ValueGradients, seed: int) -> Tensor:
        blocks = [squared_norms(d, a) for d, a in zip(gradients.deltas, gradients.inputs, strict=True)]
        return torch.stack(blocks).sum(dim=0).sqrt().unsqueeze(1)


def squared_norms(delta: Tensor, activation: Tensor) -> Tensor:
    """|sum_t delta_t (x) a_t|^2 of each row: [B, T, O], [B, T, R] -> [B], the cheaper of two ways."""
    dtype = torch.float64 if delta.dtype == torch.float64 else torch.float32
    delta, activation = delta.to(dtype), activation.to(dtype)
    tokens, outputs, inputs = delta.shape[1], delta.shape[2], activation.shape[2]
    if tokens * (outputs + inputs) >= outputs * inputs:
        return (delta.mT @ activation).square().sum(dim=(1, 2))
    grams = (delta @ delta.mT) * (activation @ activation.mT)
    return grams.sum(dim=(1, 2)).clamp(min=0)  # rounding can take a zero below zero
