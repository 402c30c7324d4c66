"""The small batch as micro-batches, padded or packed."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import InputError
from corebatch.model.rows import Padding, check_packable, pack_together, put_together
from corebatch.types import ID, PLACES, SOURCE


def cut(order: Sequence[int], count: int) -> list[list[int]]:
    """`order` cut into `count` pieces of near-equal size, the larger ones first."""
    base, more = divmod(len(order), count)
    sizes = [base + (number < more) for number in range(count)]
    return [list(order[start:end]) for start, end in pairwise(accumulate(sizes, initial=0))]


def deal(order: Sequence[int], lengths: Sequence[int], count: int, most: int) -> list[list[int]]:
    """Rows dealt to `count` piles of like numbers of tokens, at most `most` rows each; none is empty if avoidable.

    Each row goes to the pile with the fewest tokens that still has room, the first of equals. With the longest row
    first this is the rule "longest processing time" (Graham 1969, Bounds on multiprocessing timing anomalies).

    Args:
        order: numbers of rows, the longest first.
        lengths: tokens of each row, at least 1.
    """
    piles: list[list[int]] = [[] for _ in range(count)]
    open_piles = [(0, number) for number in range(count)]
    for row in order:
        tokens, number = heapq.heappop(open_piles)
        piles[number].append(row)
        if len(piles[number]) < most:
            heapq.heappush(open_piles, (tokens + lengths[row], number))
    return piles


def micro_batches(
    rows: Sequence[Mapping[str, Tensor]],
    weights: Tensor | None,
    count: int,
    padding: Padding,
    filler: Mapping[str, Tensor],
    *,
    numbers: Sequence[int] | None = None,
    packed: bool = False,
    most_rows: int | None = None,
    flash: bool = False,
) -> list[dict[str, Any]]:
    """Exactly `count` micro-batches, padded or packed.

    Padded: near-equal numbers of rows, rows of like length together, which wastes the least padding. Packed: each
    micro-batch is one batch row without padding (`pack_together`), rows dealt so that tokens are balanced (`deal`);
    `padding` is not used. Either way the order of equally long rows is that of their example ids.

    Args:
        rows: this rank's share of the small batch.
        weights: what each row's loss is multiplied by, [len(rows)], or None where the plain loss is used (then
            rows >= count). They become `loss_weights`: [B], or packed [1, T], each token's being its row's.
        count: how many micro-batches the parent asked for.
        padding: how to pad.
        filler: a row that stands, with weight 0, where there are fewer rows than micro-batches.
        numbers: each row's number in this rank's pool, -1 for a row that came from another rank. If given, every
            micro-batch says in `corebatch_places`, LongTensor [rows of the pool in it, 4] on the CPU, where its rows
            lie: number (the filler's is -1), batch row, start and end of its tokens.
        packed: whether to pack.
        most_rows: how many rows a micro-batch may have; ceil(rows / count) by default.
        flash: see `pack_together`.

    Raises:
        DataError: rows to be packed have a key by row, holes in their mask, or positions that skip.
        InputError: there are more rows than fit, or not a number for each.
    """
    most = -(-len(rows) // count) if most_rows is None else most_rows
    if len(rows) > count * most:
        raise InputError(f"{count} micro-batches of at most {most} rows should hold all rows. Found {len(rows)}.")
    if numbers is not None and len(numbers) != len(rows):
        raise InputError(f"numbers should have one number for each of {len(rows)} rows. Found {len(numbers)}.")
    if packed:
        check_packable([*rows, filler])
    lengths = [len(row["input_ids"]) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-lengths[i], int(rows[i][ID])))
    made = []
    for part in deal(order, lengths, count, most) if packed else cut(order, count):
        taken = [rows[i] for i in part] or [filler]
        batch = pack_together(taken, flash=flash) if packed else put_together(taken, padding)
        batch.pop(ID, None)
        batch.pop(SOURCE, None)
        spans = _packed_spans(taken) if packed else _padded_spans(taken, batch["input_ids"].shape[1], padding)
        if weights is not None:
            given = weights[part] if part else weights.new_zeros(1)
            sizes = torch.tensor([end - start for _, start, end in spans], device=given.device)
            batch["loss_weights"] = given.repeat_interleave(sizes).unsqueeze(0) if packed else given
        if numbers is not None:
            known = [numbers[i] for i in part] or [-1]
            batch[PLACES] = torch.tensor([[number, *span] for number, span in zip(known, spans, strict=True)])
        made.append(batch)
    return made


def _packed_spans(rows: Sequence[Mapping[str, Tensor]]) -> list[tuple[int, int, int]]:
    """(batch row, start, end) of each row in what `pack_together` gives."""
    return [(0, *span) for span in pairwise(accumulate((len(row["input_ids"]) for row in rows), initial=0))]


def _padded_spans(rows: Sequence[Mapping[str, Tensor]], width: int, padding: Padding) -> list[tuple[int, int, int]]:
    """(batch row, start, end) of each row in what `put_together` gives."""
    lengths = [len(row["input_ids"]) for row in rows]
    return [(i, width - n, width) if padding.left else (i, 0, n) for i, n in enumerate(lengths)]
