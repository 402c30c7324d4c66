"""How long each example is: a score that needs no forward."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from corebatch.model.rows import attended, trained_tokens
from corebatch.scoring.base import LossUnit, Scorer, Scores


class Length(Scorer):
    """Features [N, 1]: tokens that are no padding, prompt included; about what a forward of the example costs.

    A control: it shows how much of another scorer's gain is length alone. `tokens` is the sharper one for importance,
    since a gradient grows with the tokens that are trained. The unit of the loss makes no difference.
    """

    name = "length"
    needs_forward = False

    def _run(self, model: nn.Module, batch: Mapping[str, Tensor], loss: LossUnit, seed: int) -> Scores:
        feature = attended(batch).sum(dim=1).to(torch.float32)
        return Scores(features=feature.unsqueeze(1), losses=None, tokens=trained_tokens(batch["labels"]))
