"""The micro-batches of some steps, and how long they take, told from micro-batches that were timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from corebatch.bench.advise.shapes import FEWEST, Dims, Floats, Timed, terms


@dataclass(frozen=True, kw_only=True)
class Layouts:
    """The micro-batches of some steps.

    Attributes:
        pieces: by step, the rows of each of its micro-batches: numbers in the mixture.
        dims: by step, rows and positions of each micro-batch.
        tokens: by step.
    """

    pieces: Sequence[Sequence[Sequence[int]]]
    dims: Sequence[Sequence[Dims]]
    tokens: Floats

    @cached_property
    def terms(self) -> Floats:
        """By step, the sum over its micro-batches of what coefficients of their time multiply: [steps, 3]."""
        return np.stack([terms(step).sum(axis=0) for step in self.dims])

    @property
    def a_token(self) -> float:
        """Positions a token, over all steps."""
        return sum(rows * width for step in self.dims for rows, width in step) / float(self.tokens.sum())

    @property
    def largest(self) -> int:
        """Positions of the largest micro-batch."""
        return max(rows * width for step in self.dims for rows, width in step)


def step_seconds(
    laid: Layouts, timed: Timed, *, rest: float = 0.0, call: float = 0.0, without: int | None = None
) -> Floats:
    """Of each step. rest: of a step, what is no micro-batch's; call: of a micro-batch, what the trainer's loop adds."""
    found: Floats = laid.terms @ timed.coefficients(without) + call * laid.terms[:, 0] + rest
    return found


def factor_of(
    laid: Layouts,
    configured: Layouts,
    timed: Timed,
    *,
    own: Timed | None = None,
    rest: float = 0.0,
    call: float = 0.0,
    part: float = 0.0,
) -> tuple[float, float, float]:
    """Time a token over that as configured, with an interval: 95 % over steps by a jackknife over the same steps of
    both, widened to what comes out when any one of the timed micro-batches is left out.

    Args:
        own: what its micro-batches are told from, if not from the same ones as those that are configured.
        rest, call: as for `step_seconds`.
        part: seconds that a step takes longer than as configured, whatever it trains.
    """

    def times(without: int | None = None) -> tuple[Floats, Floats]:
        mine = step_seconds(laid, own or timed, rest=rest + part, call=call, without=without if own is None else None)
        return mine, step_seconds(configured, timed, rest=rest, call=call, without=without)

    def ratio(seconds: Any, before: Any, over: Any, under: Any) -> Any:
        return (seconds / over) / (before / under)

    whole = [*times(), laid.tokens, configured.tokens]
    factor = float(ratio(*(each.sum() for each in whole)))
    over_steps, count = ratio(*(each.sum() - each for each in whole)), len(laid.tokens)
    half = 1.96 * float(np.sqrt((count - 1) / count * ((over_steps - over_steps.mean()) ** 2).sum()))
    others = [times(left) for left in range(len(timed.dims)) if len(timed.dims) > FEWEST]
    found = [factor, *(float(ratio(a.sum(), b.sum(), whole[2].sum(), whole[3].sum())) for a, b in others)]
    return factor, max(min(found) - half, 1e-6), max(found) + half
