"""Which models may be trained on packed rows: found by trying, not by a list of names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import DataError
from corebatch.model.head import Positions
from corebatch.model.head_loss import forward_losses
from corebatch.model.modes import base_model
from corebatch.model.rows import Padding, check_packable, pack_together, put_together
from corebatch.types import ID, SOURCE

TOLERANCE = 1e-3
"""How far the loss of any token may differ, relative to max(1, loss)."""
LOW_PRECISION_TOLERANCE = 2e-2
"""How far the token losses of a row may differ on the mean, in the same unit, where anything runs in 16 bits or fewer.
Single tokens would tell nothing: SmolLM2-135M in bfloat16 moves some by 0.1 through rounding alone, and the mean by
less than 0.01; attention across rows moves the second row's mean by 0.24 or more
(12 pairs of four short texts)."""


def packing_unfit(model: Any) -> str | None:
    """Why the model certainly cannot take packed rows, or None: then `check_packing` decides.

    Args:
        model: a causal language model, with or without adapters.
    """
    kind = type(base_model(model))
    parameters = inspect.signature(kind.forward).parameters  # the class's: an instance's may be wrapped by anything
    if "position_ids" in parameters or "input_ids" not in parameters:  # no input_ids either: it passes everything on
        return None
    return f"{kind.__name__} takes no position_ids, so that it cannot see where a packed row ends"


def check_packing(model: Any, rows: Sequence[Mapping[str, Tensor]], *, flash: bool = False) -> str | None:
    """Why the model must not be trained on packed rows like these, or None: two rows are run padded and packed.

    Losses of all their tokens are compared, whatever is trained, so that rows that see each other (recurrent states,
    ALiBi, attention that does not read positions) show. Two forwards without gradients, on every rank whatever its
    rows hold; the model's state, modes and random state are left as they are. The padded rows are padded on the
    right: with padding on the left and no `position_ids`, absolute positions count the padding too, in the padded
    layout alone.

    Args:
        model: as a scorer takes it.
        rows: of the first pool, as `take_rows` gives them, at least one. The two shortest of two tokens or more are
            run, or one of them twice.
        flash: as the micro-batches will be packed; see `pack_together`.
    """
    pair = _two_short(rows)
    problem = None
    try:
        check_packable(rows)
    except DataError as error:
        problem = str(error)
        # The forwards run all the same: other ranks, whose rows may be in order, wait for this one where weights are
        # sharded.
        pair = [{key: row[key] for key in ("input_ids", "labels")} for row in pair]
    name = type(base_model(model)).__name__
    expected, low = _token_losses(model, put_together(pair, Padding(token=0)))
    try:
        found, _ = _token_losses(model, pack_together(pair, flash=flash))
    except Exception as error:  # whatever a model's own code raises when it meets what it was not written for
        return problem or f"{name} fails on packed rows ({type(error).__name__}: {error})"
    if problem is not None or len(expected) == 0 or not bool(torch.isfinite(expected).all()):
        return problem  # a loss that is not finite is told with its step and examples when it is scored
    differences = (found - expected).abs() / expected.clamp(min=1.0)
    if low:
        first = len(pair[0]["input_ids"]) - 1
        differences = torch.stack([differences[:first].mean(), differences[first:].mean()])
    worst, tolerance = float(differences.max()), LOW_PRECISION_TOLERANCE if low else TOLERANCE
    if worst <= tolerance:  # false for NaN
        return None
    return (
        f"{name} gives packed rows other token losses than padded ones: they differ by up to {worst:.2g} of "
        f"max(1, loss){' on the mean of a row' if low else ''}, where {tolerance} is allowed"
    )


def _two_short(rows: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Two rows without their tags, every token a label."""
    usable = sorted((row for row in rows if len(row["input_ids"]) > 1), key=lambda row: len(row["input_ids"])) or rows
    return [
        {**{key: value for key, value in row.items() if key not in (ID, SOURCE)}, "labels": row["input_ids"]}
        for row in (usable[0], usable[min(1, len(usable) - 1)])
    ]


def _token_losses(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, bool]:
    """Losses [L] of all label positions, row by row, and whether the model computes in low precision."""
    return forward_losses(
        model,
        batch,
        Positions.of(batch["labels"]),
        lambda head, hidden, _: hidden.dtype.itemsize < 4 or torch.is_autocast_enabled(hidden.device.type),
    )
