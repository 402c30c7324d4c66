"""What a choice of rows follows: the pool, or something else on purpose."""

from __future__ import annotations

from corebatch.batch.method import CoresetStep
from corebatch.scoring import ExcessLoss

POOL = "the pool"


def followed(method: CoresetStep) -> str:
    """In words. "the pool": in the mean over steps what is trained is what was drawn, or the nearest to it."""
    if method.target is not None:
        every = "each step" if method.target.every == 1 else f"every {method.target.every} steps"
        return f"a target, by the gradients of {method.target.rows} of its rows at {every}, and not the pool"
    if "losses" not in method.selector.requires:
        return POOL
    if isinstance(method.scorer, ExcessLoss) and method.scorer.reference is not None:
        return f"what {method.scorer.against.reference.in_words} was trained on, by excess loss, and not the pool"
    return "rows of high loss, and not the pool"
