"""The square root of an example's trained tokens: a score that needs no forward."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from corebatch.model.rows import trained_tokens
from corebatch.scoring.base import LossUnit, Scorer, Scores


class Tokens(Scorer):
    """Features [N, 1]: sqrt(trained tokens).

    The loss is a sum over tokens, so an example's gradient grows with its length, about as the square root if its
    tokens pull in unrelated directions. With `importance` this is the baseline that every scorer with a forward
    must beat at equal cost. For a mean over examples lengths do not matter: all ones.
    """

    name = "tokens"
    needs_forward = False

    def _run(self, model: nn.Module, batch: Mapping[str, Tensor], loss: LossUnit, seed: int) -> Scores:
        tokens = trained_tokens(batch["labels"])
        feature = tokens.to(torch.float32).sqrt() if loss == "token_mean" else (tokens > 0).to(torch.float32)
        return Scores(features=feature.unsqueeze(1), losses=None, tokens=tokens)
