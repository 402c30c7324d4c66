"""Stage 2: large batch -> features, one row an example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corebatch.model.moments import Coordinates
from corebatch.model.rows import trained_tokens
from corebatch.options import build
from corebatch.scoring.base import LossUnit, Scorer, Scores, extents
from corebatch.scoring.el2n import EL2N
from corebatch.scoring.excess_loss import ExcessLoss
from corebatch.scoring.gradient_norm import GradientNorm
from corebatch.scoring.label_counts import LabelCounts
from corebatch.scoring.last_layer import LastLayer
from corebatch.scoring.length import Length
from corebatch.scoring.logits import Logits
from corebatch.scoring.loss import Loss
from corebatch.scoring.representation import Representation
from corebatch.scoring.tokens import Tokens
from corebatch.scoring.zeroth_order import ZerothOrder
from corebatch.seeds import seeded

SCORERS: dict[str, type[Scorer]] = {
    scorer.name: scorer
    for scorer in (
        LastLayer,
        GradientNorm,
        ZerothOrder,
        Loss,
        ExcessLoss,
        EL2N,
        Logits,
        Representation,
        Tokens,
        Length,
        LabelCounts,
    )
}
"""Every scorer by its name. A new one is a file and a name here."""


def make_scorer(scorer: str | Scorer, options: Mapping[str, Any] | None = None) -> Scorer:
    """A scorer from its name and options, or the instance itself.

    Raises:
        ConfigError: an unknown name or option, or options beside an instance.
    """
    return build("scorer", scorer, options, SCORERS, Scorer)


__all__ = [
    "EL2N",
    "SCORERS",
    "Coordinates",
    "ExcessLoss",
    "GradientNorm",
    "LabelCounts",
    "LastLayer",
    "Length",
    "Logits",
    "Loss",
    "LossUnit",
    "Representation",
    "Scorer",
    "Scores",
    "Tokens",
    "ZerothOrder",
    "extents",
    "make_scorer",
    "seeded",
    "trained_tokens",
]
