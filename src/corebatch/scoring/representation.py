"""What the head sees of each example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from corebatch.errors import ConfigError
from corebatch.model.head import Positions
from corebatch.model.head_loss import forward_losses
from corebatch.model.rows import attended, trained_tokens
from corebatch.scoring.base import LossUnit, Scorer, Scores


class Representation(Scorer):
    """Features [N, D]: the last hidden state as the head receives it, after the final norm; its mean over the tokens
    that are no padding, or the mean with the weights 1, 2, 3, ... ("by_position"), or that of the last of them.

    Nearness of inputs, not of gradients: a selector spreads over topics, and lengths of features say nothing of how
    much an example moves the model. The unit of the loss makes no difference. One forward without gradients; the head
    runs on label positions, for the losses. Pooled last states as the space to select in: RDS+ (Ivison et al. 2025,
    arXiv 2503.01807), whose mean is that by position, as SGPT's (Muennighoff 2022, arXiv 2202.08904).
    """

    name = "representation"

    def __init__(self, *, pooling: Literal["mean", "by_position", "last"] = "mean") -> None:
        if pooling not in ("mean", "by_position", "last"):
            raise ConfigError(f"representation's pooling should be mean, by_position or last. Found {pooling!r}.")
        self.pooling = pooling

    def _run(self, model: nn.Module, batch: Mapping[str, Tensor], loss: LossUnit, seed: int) -> Scores:
        positions = Positions.of(batch["labels"])
        mask = attended(batch)
        losses, features = forward_losses(
            model, batch, positions, lambda head, hidden, transform: self._pool(hidden, mask.to(hidden.device))
        )
        return Scores(features=features, losses=positions.sum_rows(losses), tokens=trained_tokens(batch["labels"]))

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[B, T, D], [B, T] -> [B, D]; a row of nothing but padding is zero."""
        hidden = hidden.to(torch.float64 if hidden.dtype == torch.float64 else torch.float32)
        if self.pooling == "last":
            places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
            mask = mask & (places == (places * mask).amax(dim=1, keepdim=True))
        weights = mask.long()
        if self.pooling == "by_position":
            weights = mask.cumsum(dim=1) * mask
            hidden = hidden * weights.unsqueeze(2)
        summed = torch.where(mask.unsqueeze(2), hidden, 0).sum(dim=1)  # padding may hold NaN
        return summed / weights.sum(dim=1, keepdim=True).clamp(min=1)
