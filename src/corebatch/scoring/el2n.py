"""How far the predicted probabilities are from the label, by token.

Shape suffixes: L label positions of a batch, D hidden width, V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from corebatch.model.head import Positions
from corebatch.model.head_loss import chunks, forward_losses
from corebatch.model.rows import trained_tokens
from corebatch.scoring.base import LossUnit, Scorer, Scores


class EL2N(Scorer):
    """Features [N, 1]: the sum of ||p - y||_2 over an example's trained tokens (or their mean, if the loss is a mean of
    examples'), with probabilities p and the label y as a unit vector; from 0 to sqrt(2) a token.

    The error L2-norm (Paul, Ganguli, Dziugaite 2021, arXiv 2107.07075, definition 2.3), for text by token as in Marion
    et al. 2023 (arXiv 2309.04564). It is the length of the gradient by the logits. The paper averages it over ten
    models early in training; ours is one model's, the one that is given. One forward without gradients, the head twice
    on label positions.
    """

    name = "el2n"

    def _run(self, model: nn.Module, batch: Mapping[str, Tensor], loss: LossUnit, seed: int) -> Scores:
        positions = Positions.of(batch["labels"])

        def errors_of(head: nn.Module, hidden: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
            taken = positions.take(hidden)
            parts = [
                _errors(transform(head.forward(taken[part])), positions.targets[part])
                for part in chunks(len(taken), head)
            ]
            return torch.cat(parts) if parts else taken.new_zeros(0)

        losses, errors_L = forward_losses(model, batch, positions, errors_of)
        tokens = trained_tokens(batch["labels"])
        sums = positions.sum_rows(errors_L.to(losses.dtype))
        feature = sums if loss == "token_mean" else sums / tokens.clamp(min=1)
        return Scores(features=feature.unsqueeze(1), losses=positions.sum_rows(losses), tokens=tokens)


def _errors(logits_LV: Tensor, targets_L: Tensor) -> Tensor:
    """||p - y||_2 of each position: [L]."""
    off_LV = logits_LV.softmax(dim=-1)
    off_LV[torch.arange(len(off_LV)), targets_L] -= 1.0
    return torch.linalg.vector_norm(off_LV, dim=-1)
