"""Whether a `compute_loss` of the user's own trains what is claimed: sum_i weight_i L_i / num_items_in_batch, and
perhaps something that looks at no row. Found by calling it on two rows with weights of our own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import LossMismatchError
from corebatch.model.rows import Padding, put_together, trained_tokens
from corebatch.model.untraced import counts_kept, untraced
from corebatch.trainer.model_loss import check_loss, two_rows
from corebatch.trainer.own_loss import WAY, WEIGHTS

AGAIN = frozenset({1, 2, 4, 8, 16, 32, 64})
"""Steps done before which terms without weights are looked for again: a divergence from the model before training is
zero at its start."""
FIRST, SECOND = 2.0, 3.0
"""Weights of two rows of one batch."""
FIRST_OF_BASES = " What only adds to the parent's loss may stand before CoresetTrainer among the bases."
EXACT, CLOSE, CLOSE_IN_LOW_PRECISION = 1e-6, 1e-3, 5e-2
"""Relative tolerances: where the same numbers are added, where batches of other sizes are run, and that in 16 bits."""


def check_own_loss(trainer: Any, pair: Mapping[str, Tensor], *, again: bool = False) -> None:
    """Calls the user's `compute_loss` on two rows alone and together: seven forwards, the same number on every rank,
    that leave no trace in the model, the random state and the trainer's own counts.

    Args:
        pair: a batch of the two rows.
        again: only terms that weights of zero do not silence are looked for, by two forwards.

    Raises:
        LossMismatchError: weights are not taken or not used, or something else is trained; names the method.
    """
    call = _Call(trainer, pair)
    zeros = [call((0,), 0.0), call((1,), 0.0)]
    found = None if again else _not_weighted(call, zeros)
    if call.failure is not None:
        found = call.failure
    elif found is None and not _near(zeros[0], zeros[1], EXACT, 0.0):
        found = (
            f"with weights of zero it is {zeros[0]:.6g} for one row and {zeros[1]:.6g} for another: a part of it "
            "depends on rows and not on their weights"
        )
    if found is not None:
        raise LossMismatchError(
            f"{trainer._run.weights.owned[0]} computes the loss itself, and its rows should count by their weights. "
            f"Found: {found}. {WAY}" + trainer._run.weights.behind * FIRST_OF_BASES
        )


def _not_weighted(call: _Call, zeros: Sequence[float]) -> str | None:
    """How the loss of two rows is not the sum of their losses, each times its weight, over the denominator.

    Args:
        zeros: its value at a weight of zero, for each row alone.
    """
    alone = [call((0,), 1.0), call((1,), 1.0)]
    both, halved = call((0, 1), FIRST, SECOND), call((0, 1), FIRST, SECOND, items=2.0)
    rest = call((0, 1), 0.0, 0.0, items=2.0)
    if math.isnan(zeros[0]) and math.isfinite(alone[0]):
        return "with weights of zero it is not a number: it is not linear in the weights"
    first, second = alone[0] - zeros[0], alone[1] - zeros[1]
    together, wanted = both - zeros[0], FIRST * first + SECOND * second
    close = CLOSE_IN_LOW_PRECISION if call.low else CLOSE
    noise = close * (abs(wanted) + EXACT * abs(zeros[0]))
    if first == 0 or second == 0:
        return "it is the same with weights of zero and of one"
    if not _near(zeros[0], zeros[1], EXACT, 0.0):
        return None  # told by the caller
    if not _near(together, wanted, close, noise):
        return (
            f"rows of losses {first:.6g} and {second:.6g} with weights {FIRST:g} and {SECOND:g} give together "
            f"{together:.6g}, not {wanted:.6g}: it is a mean over the tokens or rows of a micro-batch, or not "
            "linear in the weights"
        )
    if not _near(halved - rest, together / 2, close, noise):
        return "it is not divided by num_items_in_batch"
    return None


def check_later(
    trainer: Any, model: Any, batches: Sequence[Mapping[str, Tensor]], padding: Padding, *, own: bool
) -> None:
    """A check at a step behind the first, on all ranks; they raise together.

    Args:
        model: without what wraps it.
        batches: of the step's pool.
        padding: how micro-batches are padded.
        own: `check_own_loss` again; else the model's loss is compared, since rows have weights for the first time.
    """
    failure: Exception | None = None
    try:
        pair = put_together(two_rows(batches), padding)
        if own:
            check_own_loss(trainer, pair, again=True)
        else:
            check_loss(model, pair, counts_items=trainer.model_accepts_loss_kwargs)
    except Exception as error:
        failure = error
    trainer._run.ranks.report(failure, doing="Checking the loss")


def _near(found: float, expected: float, relative: float, absolute: float) -> bool:
    """True of numbers that are not finite: the step that trains them names its examples."""
    if not (math.isfinite(found) and math.isfinite(expected)):
        return True
    return math.isclose(found, expected, rel_tol=relative, abs_tol=absolute)


class _Call:
    """The trainer's `compute_loss`, as its training step calls it.

    Attributes:
        failure: what went wrong in the first call that did, in words.
        low: the model computes in 16 bits or fewer.
    """

    def __init__(self, trainer: Any, pair: Mapping[str, Tensor]) -> None:
        self.trainer, self.model, self.pair = trainer, trainer.model_wrapped, pair
        self.failure: str | None = None
        self._items = float(trained_tokens(pair["labels"]).sum())
        args = trainer.args
        dtypes = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        self.low = bool(args.bf16 or args.fp16) or any(dtype.itemsize < 4 for dtype in dtypes)

    def __call__(self, which: Sequence[int], *weights: float, items: float = 1.0) -> float:
        """The loss of some of the two rows, as wide as both together, with `items` times their number of tokens as
        `num_items_in_batch`; NaN where it fails."""
        inputs: dict[str, Any] = {key: value[list(which)].clone() for key, value in self.pair.items()}
        device = inputs["input_ids"].device
        inputs[WEIGHTS] = torch.tensor(weights, device=device)
        trainer, handed = self.trainer, self.trainer._run.weights
        handed.begin([inputs], None)
        handed.checking = True
        count = torch.tensor(self._items * items, device=device)
        try:
            with (
                counts_kept(trainer),
                untraced(self.model, inner=False, outermost=True),
                trainer.compute_loss_context_manager(),
            ):
                trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
                loss = trainer.compute_loss(self.model, inputs, num_items_in_batch=count)
            if not handed.all_taken:
                self.failure = "it does not take them"
            return float(loss[0] if isinstance(loss, tuple) else loss)
        except Exception as error:  # of the user's method, whatever it raises on inputs that hold weights
            untaken = "" if handed.all_taken else "it does not take them, and ends in "
            self.failure = self.failure or f"{untaken}{type(error).__name__}: {error}"
            return math.nan
        finally:
            handed.checking = False
            handed.begin([], None)
