"""The small batch as micro-batches, padded or packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import InputError
from corebatch.model.rows import Padding, check_packable, pack_together, put_together, row_spans
from corebatch.types import ID, PLACES, SOURCE


def micro_batches(
    rows: Mapping[int, Mapping[str, Tensor]],
    weights: Tensor | None,
    pieces: Sequence[Sequence[int]],
    padding: Padding,
    filler: Mapping[str, Tensor],
    *,
    numbers: Sequence[int] | None = None,
    packed: bool = False,
    flash: bool = False,
) -> list[dict[str, Any]]:
    """A micro-batch for each piece, padded, or packed: one batch row without padding (`pack_together`).

    Args:
        rows: those of the small batch that are trained here, by their positions in it.
        weights: what each row's loss is multiplied by, [M], by the same positions, or None where the plain loss is used
            (then no piece is empty). They become `loss_weights`: [B], or packed [1, T], each token's being its row's.
        pieces: the rows of each micro-batch, by their positions; every row of `rows` is in one.
        padding: how to pad; packed rows do not need it.
        filler: a row that stands, with weight 0, where a piece is empty.
        numbers: each row's number in the pool, by the same positions. If given, every micro-batch says in
            `corebatch_places`, LongTensor [its rows, 4] on the CPU, where its rows lie: number (the filler's is -1),
            batch row, start and end of its tokens.
        packed: whether to pack.
        flash: see `pack_together`.

    Raises:
        DataError: rows to be packed have a key by row, holes in their mask, or positions that skip.
        InputError: pieces that do not hold every row once.
    """
    if sorted(row for piece in pieces for row in piece) != sorted(rows):
        raise InputError(
            f"Pieces should hold each of {len(rows)} rows once. Found {sum(map(len, pieces))} rows in {len(pieces)}."
        )
    if packed:
        check_packable([*rows.values(), filler])
    made = []
    for piece in map(list, pieces):
        taken = [rows[row] for row in piece] or [filler]
        batch = pack_together(taken, flash=flash) if packed else put_together(taken, padding)
        batch.pop(ID, None)
        batch.pop(SOURCE, None)
        spans = _packed_spans(taken) if packed else _padded_spans(taken, batch["input_ids"].shape[1], padding)
        if weights is not None:
            given = weights[piece] if piece else weights.new_zeros(1)
            sizes = torch.tensor([end - start for _, start, end in spans], device=given.device)
            batch["loss_weights"] = given.repeat_interleave(sizes).unsqueeze(0) if packed else given
        if numbers is not None:
            known = [numbers[row] for row in piece] or [-1]
            batch[PLACES] = torch.tensor([[number, *span] for number, span in zip(known, spans, strict=True)])
        made.append(batch)
    return made


def as_loaded(
    batches: Sequence[Mapping[str, Tensor]],
    weights: Tensor | None,
    pieces: Sequence[Sequence[int]],
    numbers: Sequence[int] | None,
) -> list[dict[str, Any]]:
    """The loader's own batches as micro-batches, in the same tensors; for the other arguments see `micro_batches`.

    Args:
        pieces: for each batch, its rows in their order, by their positions.
    """
    made: list[dict[str, Any]] = []
    for batch, piece in zip(batches, pieces, strict=True):
        kept: dict[str, Any] = {key: value for key, value in batch.items() if key not in (ID, SOURCE)}
        if weights is not None:
            kept["loss_weights"] = weights[list(piece)]
        if numbers is not None:
            spans = enumerate(row_spans(batch).tolist())
            kept[PLACES] = torch.tensor([[numbers[row], i, *span] for row, (i, span) in zip(piece, spans, strict=True)])
        made.append(kept)
    return made


def _packed_spans(rows: Sequence[Mapping[str, Tensor]]) -> list[tuple[int, int, int]]:
    """(batch row, start, end) of each row in what `pack_together` gives."""
    return [(0, *span) for span in pairwise(accumulate((len(row["input_ids"]) for row in rows), initial=0))]


def _padded_spans(rows: Sequence[Mapping[str, Tensor]], width: int, padding: Padding) -> list[tuple[int, int, int]]:
    """(batch row, start, end) of each row in what `put_together` gives."""
    lengths = [len(row["input_ids"]) for row in rows]
    return [(i, width - n, width) if padding.left else (i, 0, n) for i, n in enumerate(lengths)]
