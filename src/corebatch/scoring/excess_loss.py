"""By how much an example's loss exceeds the one that a reference has: what is still to be learnt of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from corebatch.errors import ConfigError
from corebatch.model.head import Positions
from corebatch.model.head_loss import forward_losses
from corebatch.model.rows import trained_tokens
from corebatch.options import check_count
from corebatch.scoring.base import LossUnit, Scorer, Scores
from corebatch.scoring.references import AVERAGE, Reference, make_reference

DECAY = 0.99


class ExcessLoss(Scorer):
    """Features [N, 1]: an example's loss less the one by a reference; selectors that choose by loss choose by this.

    The reducible holdout loss of RHO-LOSS (Mindermann et al. 2022, arXiv 2206.07137, equation 3): L(y | x; now) -
    L(y | x; trained on held-out data). What is noise has a high loss by both, and what is learnt a low one by both;
    what is left is worth a step. So with `hard` a run follows the reference's data, not the pool: heavily biased, on
    purpose. DoReMi (arXiv 2305.10429) and Rho-1 (arXiv 2404.07965) compare sources and tokens in this way.

    Deviations: of a language model an example has many tokens, so it counts by its mean (`per` "token"); the paper's
    reference reads held-out rows, and so should the one that is given.

    In a run the reference's loss of each example is computed once, when the example is first drawn, and kept, over a
    resume too; the forward of the model as it is costs as much as that of `loss`.

    Args:
        reference: the path of a model or of adapters, or a model, trained on rows that are clean or to the point, with
            the same vocabulary; "base": the trained model with its adapters off; or "average": the running average of
            its own weights, by which rows whose loss rises stand out. None: nothing is taken away; a run refuses it.
        per: "token": the mean over an example's trained tokens; "example": their sum, by which long ones count more.
        decay: of the average, in [0, 1); None: 0.99.
        refresh: after so many optimizer steps the average's loss of an example is computed again; None: never.

    Raises:
        ConfigError: an option is out of range, or would do nothing.
    """

    name = "excess_loss"
    stands_for_loss = True

    def __init__(
        self,
        *,
        reference: str | nn.Module | None = None,
        per: Literal["token", "example"] = "token",
        decay: float | None = None,
        refresh: int | None = None,
    ) -> None:
        if not (reference is None or isinstance(reference, nn.Module) or (isinstance(reference, str) and reference)):
            raise ConfigError(
                f"excess_loss's reference should be a path, base, average or a model. Found {reference!r}."
            )
        if per not in ("token", "example"):
            raise ConfigError(f"excess_loss's per should be token or example. Found {per!r}.")
        if decay is not None and (isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1):
            raise ConfigError(f"excess_loss's decay should be a number in [0, 1). Found {decay!r}.")
        if refresh is not None:
            check_count("excess_loss's refresh", refresh)
        for option, value in (("decay", decay), ("refresh", refresh)):
            if value is not None and reference != AVERAGE:
                raise ConfigError(f"excess_loss's {option} goes with reference average. Found {reference!r}.")
        self.reference, self.per, self.decay, self.refresh = reference, per, decay, refresh
        self._against = None if reference is None else self.against.reference

    @property
    def against(self) -> ReferenceLoss:
        """The reference as a scorer of its own, with a state of its own, whose rows may be remembered."""
        assert self.reference is not None
        return ReferenceLoss(make_reference(self.reference, DECAY if self.decay is None else self.decay))

    def excess(self, losses: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
        """Features [N, 1] of summed losses [N] by the model and by the reference, and trained tokens [N]."""
        excess = losses - reference.to(losses)
        return (excess / tokens.to(losses).clamp(min=1) if self.per == "token" else excess).unsqueeze(1)

    def _run(self, model: nn.Module, batch: Mapping[str, Tensor], loss: LossUnit, seed: int) -> Scores:
        positions, tokens = Positions.of(batch["labels"]), trained_tokens(batch["labels"])
        losses = positions.sum_rows(forward_losses(model, batch, positions)[0])
        reference = torch.zeros_like(losses)
        if self._against is not None:
            reference = positions.sum_rows(self._against.losses(model, batch, positions))
        return Scores(features=self.excess(losses, reference, tokens), losses=losses, tokens=tokens)


class ReferenceLoss(Scorer):
    """Features [N, 1]: the sum of an example's token losses by a reference, whatever the unit of the loss."""

    name = "reference_loss"

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def _run(self, model: nn.Module, batch: Mapping[str, Tensor], loss: LossUnit, seed: int) -> Scores:
        positions = Positions.of(batch["labels"])
        losses = positions.sum_rows(self.reference.losses(model, batch, positions))
        return Scores(features=losses.unsqueeze(1), losses=None, tokens=trained_tokens(batch["labels"]))
