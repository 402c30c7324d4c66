"""The nuclear norm of each example's logits.

Shape suffixes: L label positions of a batch, t those of one example, V words of the vocabulary, D hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corebatch.model.head import Positions
from corebatch.model.head_loss import CHUNK_ELEMENTS, forward_losses, vocabulary
from corebatch.model.rows import trained_tokens
from corebatch.scoring.base import LossUnit, Scorer, Scores


class Logits(Scorer):
    """Features [N, 1]: the sum of the singular values of an example's logits [t, V] over its trained positions.

    UDS (Zou et al. 2025, arXiv 2510.16882): large where the logits are large and the positions unlike. As there it is
    the logits and not their softmax: a probability matrix has rows of length at most 1, so its norm would measure
    diversity and confidence only. It changes if a constant is added to all logits of a position, which no loss sees.
    Deviations: trained positions only (the authors' code takes padding and prompt too), and no memory of earlier
    batches: diversity between examples is the selector's work. The unit of the loss makes no difference.

    The singular values come from the t x t Gram matrix of the logits, summed in double precision (a root halves the
    digits) over chunks, so that [t, V] never exists: over chunks of the vocabulary if the head is a plain linear map,
    else over pairs of chunks of positions. One forward without gradients, the head twice on label positions (once for
    the losses), and t^2 V multiplications an example.
    """

    name = "logits"

    def _run(self, model: nn.Module, batch: Mapping[str, Tensor], loss: LossUnit, seed: int) -> Scores:
        positions = Positions.of(batch["labels"])
        rows = len(batch["labels"])

        def norms_of(head: nn.Module, hidden: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
            taken = positions.take(hidden)
            return torch.stack([nuclear_norm(head, taken[positions.rows == row], transform) for row in range(rows)])

        losses, norms = forward_losses(model, batch, positions, norms_of)
        return Scores(
            features=norms.to(losses.dtype).unsqueeze(1),
            losses=positions.sum_rows(losses),
            tokens=trained_tokens(batch["labels"]),
        )


def nuclear_norm(head: nn.Module, hidden: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum of the singular values of transform(head(hidden)) [t, V], a double; hidden is [t, D]."""
    count = len(hidden)
    gram = torch.zeros(count, count, dtype=torch.float64, device=hidden.device)
    if type(head) is nn.Linear:  # no adapter, no shard
        for part in _slices(head.out_features, count):
            bias = None if head.bias is None else head.bias[part]
            logits = transform(F.linear(hidden, head.weight[part], bias)).double()
            gram += logits @ logits.mT
    else:
        parts = _slices(count, vocabulary(head))
        for i, one in enumerate(parts):
            logits = transform(head.forward(hidden[one])).double()
            gram[one, one] = logits @ logits.mT
            for other in parts[i + 1 :]:
                gram[one, other] = logits @ transform(head.forward(hidden[other])).double().mT
                gram[other, one] = gram[one, other].mT
    if not bool(gram.isfinite().all()):
        return gram.new_full((), math.nan)  # the step names the row
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()


def _slices(length: int, width: int) -> list[slice]:
    """Slices over `length` such that two pieces of `width` doubles are no larger than one chunk of float logits."""
    step = max(1, CHUNK_ELEMENTS // 4 // max(width, 1))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
