"""Whether a step's update stays what it is when its rows are put together anew: the loss is a sum over rows' tokens,
over the tokens of the whole step, whatever a row is padded to. Asked where every row is trained (pool_factor 1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import UNTOUCHED, DataError, LossMismatchError
from corebatch.model.modes import base_model, forward_inputs, scoring_mode
from corebatch.model.rows import Padding, put_together, row_spans, trained_tokens
from corebatch.trainer.model_loss import loss_of, two_rows, zero_if_nothing_is_trained
from corebatch.types import ID, IGNORED

CLOSE, CLOSE_LOW = 1e-4, 5e-2
"""Of max(1, loss): how nearly the losses of two rows add up, also where they are computed in 16 bits."""
WIDER = 7
"""Positions that a row is padded by, for the check."""


def check_counted(trainer: Any, model: Any) -> None:
    """Checks that the plain Trainer's update is a sum over the rows of a step, so that they may be put together anew.

    Raises:
        LossMismatchError: each micro-batch has a denominator of its own.
    """
    coreset = trainer.coreset
    what = f"micro_batches {coreset.cut.by!r}" if coreset.cut.regroups else "budget"
    if not trainer.model_accepts_loss_kwargs:
        raise LossMismatchError(
            f"coreset.{what} needs a loss over the tokens of the whole step, whichever rows meet in a "
            f"micro-batch. Found that the Trainer hands no num_items_in_batch to {type(base_model(model)).__name__}, "
            "whose loss is then a mean over each micro-batch. Set micro_batches to plain, and budget "
            "to constant."
        )


def check_first_labels(batches: Sequence[Mapping[str, Tensor]], padding: Padding) -> None:
    """Raises DataError for rows padded on the left whose first token is trained: it counts where there is padding
    before it, and does not where there is none."""
    if not padding.left:
        return
    for batch in batches:
        starts = row_spans(batch)[:, 0].to(batch["labels"].device)
        trained = batch["labels"].gather(1, starts.unsqueeze(1)).squeeze(1) != IGNORED
        if bool(trained.any()):
            examples = batch[ID][trained][:8].tolist()
            raise DataError(
                f"Rows that are put together anew should have the same loss whatever they are padded to. Found padding "
                f"on the left and rows whose first token is trained (examples {', '.join(map(str, examples))}): that "
                "label counts behind padding alone. Pad on the right, leave the first label out (-100), or set "
                "coreset.micro_batches to plain."
            )


def check_sum(trainer: Any, model: Any, batches: Sequence[Mapping[str, Tensor]], padding: Padding) -> None:
    """Compares the model's loss of two rows with the sum of their losses, with padding and without; four forwards, the
    same number on every rank, that leave no trace.

    Args:
        model: a causal language model, without what wraps it.
        batches: of the first pool.
        padding: how micro-batches are padded.

    Raises:
        LossMismatchError: it is no sum over rows, or something is added; says by how much.
    """
    rows = two_rows(batches)
    longest = max(len(row["input_ids"]) for row in rows) + WIDER
    limit = trainer._run.limits.longest
    wide = dataclasses.replace(padding, multiple_of=longest if limit is None or longest <= limit else 1)
    both = put_together(rows, wide)
    items = trained_tokens(both["labels"]).sum()
    with scoring_mode(model):
        first, second = (
            _loss(model, put_together([row], dataclasses.replace(padding, multiple_of=1)), items) for row in rows
        )
        together = _loss(model, both, items)
    added = zero_if_nothing_is_trained(model, both, items)
    args = trainer.args
    low = bool(args.bf16 or args.fp16) or any(p.dtype.itemsize < 4 for p in model.parameters() if p.is_floating_point())
    problem = added
    allowed = (CLOSE_LOW if low else CLOSE) * max(1.0, abs(float(together)))
    if added is None and torch.isfinite(together) and abs(float(together - first - second)) > allowed:
        problem = (
            f"rows of losses {float(first):.6g} and {float(second):.6g} have {float(together):.6g} together, padded to "
            f"{both['input_ids'].shape[1]} positions{' on the left' * padding.left}"
        )
    if problem is not None:
        raise LossMismatchError(
            f"coreset.micro_batches {trainer.coreset.cut.by!r} with pool_factor 1 needs a loss that is a sum over "
            f"rows, whatever they are padded to. Found of {type(base_model(model)).__name__} that {problem}. Rows that "
            f"are put together anew would have another update: use the plain Trainer ({UNTOUCHED})."
        )


def _loss(model: Any, batch: Mapping[str, Tensor], items: Tensor) -> Tensor:
    output = model(**forward_inputs(batch), labels=batch["labels"], num_items_in_batch=items)
    return loss_of(model, output).double()
