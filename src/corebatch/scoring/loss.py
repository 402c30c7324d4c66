"""The loss of each example, as the only feature: what `hard` chooses by."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from corebatch.model.head import Positions
from corebatch.model.head_loss import forward_losses
from corebatch.model.rows import trained_tokens
from corebatch.scoring.base import LossUnit, Scorer, Scores


class Loss(Scorer):
    """Features [N, 1]: the sum of an example's token losses (or their mean, if the loss is a mean of examples').

    One forward without gradients; the head runs on label positions only.
    """

    name = "loss"

    def _run(self, model: nn.Module, batch: Mapping[str, Tensor], loss: LossUnit, seed: int) -> Scores:
        positions = Positions.of(batch["labels"])
        losses = positions.sum_rows(forward_losses(model, batch, positions)[0])
        tokens = trained_tokens(batch["labels"])
        feature = losses if loss == "token_mean" else losses / tokens.clamp(min=1)
        return Scores(features=feature.unsqueeze(1), losses=losses, tokens=tokens)
