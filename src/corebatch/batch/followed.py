"""What a choice of rows follows: the pool, or something else on purpose."""

from __future__ import annotations

from corebatch.batch.method import CoresetStep
from corebatch.scoring import ExcessLoss

POOL = "the pool"


def followed(method: CoresetStep) -> str:
    """In words. "the pool": in the mean over steps what is trained is what was drawn, or the nearest to it."""
    if "losses" not in method.selector.requires:
        return POOL
    if isinstance(method.scorer, ExcessLoss) and method.scorer.reference is not None:
        return f"what {method.scorer.against.reference.in_words} was trained on, by excess loss, and not the pool"
    return "rows of high loss, and not the pool"
