"""The pool of all ranks: what is known of every row, on every rank alike, and the rows that change ranks.

Only numbers of fixed types travel: features, losses, ids, sources, lengths; and the chosen rows beyond a rank's share.

Shape suffixes: N rows of the pool over all ranks, n rows on this rank, P features, W ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corebatch.scoring import Scores
from corebatch.trainer.repack import Padding


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What is known of the pool's rows before any is scored, in the order of their global example ids.

    Attributes:
        ids, sources, lengths, tokens, ranks, rows: LongTensor [N] on the CPU: example id, source, tokens without
            padding, trained tokens, the rank that holds the row, and its number there.
        eligible: BoolTensor [N] on the CPU: False for copies that a loader adds to even out ranks; they are scored
            (every rank runs the same forwards) but cannot be chosen.
    """

    ids: Tensor
    sources: Tensor
    lengths: Tensor
    tokens: Tensor
    ranks: Tensor
    rows: Tensor
    eligible: Tensor


def gather_pool(accelerator: Any, columns: Mapping[str, Tensor]) -> Pool:
    """Joins the rows of all ranks and sorts them by example id; of equal ids the first rank's is eligible.

    Args:
        columns: integers [n] of this rank's rows: ids, sources, lengths, tokens, eligible.
    """
    names = ("ids", "sources", "lengths", "tokens", "eligible")
    count = len(columns["ids"])
    integers = torch.stack([*(columns[name].cpu().long() for name in names), torch.arange(count)], dim=1)
    counts = [count]
    if accelerator.num_processes > 1:
        device = accelerator.device
        counts = accelerator.gather(torch.tensor([count], device=device)).tolist()
        integers = gather_rows(accelerator, integers.to(device), counts).cpu()
    ranks = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    # By id; of equal ids the eligible copy first, then the lower rank's.
    order = torch.sort(integers[:, 4], descending=True, stable=True).indices
    order = order[torch.sort(integers[order, 0], stable=True).indices]
    integers, ranks = integers[order], ranks[order]
    ids, sources, lengths, tokens, eligible, rows = integers.unbind(dim=1)
    first = torch.ones(len(ids), dtype=torch.bool)
    first[1:] = ids[1:] != ids[:-1]
    return Pool(
        ids=ids,
        sources=sources,
        lengths=lengths,
        tokens=tokens,
        ranks=ranks,
        rows=rows,
        eligible=first & eligible.bool(),
    )


def gather_scores(accelerator: Any, pool: Pool, wanted: Tensor, mine: Scores) -> Scores:
    """Features and losses of the pool's rows `wanted`, on every rank.

    Args:
        pool: of all ranks.
        wanted: LongTensor of positions in the pool, ascending.
        mine: scores of those that this rank holds, in the same order; of no rows where it holds none.
    """
    if accelerator.num_processes == 1:
        return mine
    parts = [mine.features] if mine.losses is None else [mine.features, mine.losses.unsqueeze(1)]
    numbers = torch.cat([part.to(mine.features.dtype) for part in parts], dim=1)
    ranks = pool.ranks[wanted]
    counts = [int((ranks == rank).sum()) for rank in range(accelerator.num_processes)]
    gathered = gather_rows(accelerator, numbers, counts)
    # Rank by rank as it came; each rank's rows are in the pool's order already.
    order = torch.sort(ranks, stable=True).indices
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    gathered = gathered[back.to(gathered.device)]
    width = mine.features.shape[1]
    return Scores(
        features=gathered[:, :width],
        losses=None if mine.losses is None else gathered[:, width],
        tokens=pool.tokens[wanted],
    )


def agree(accelerator: Any, number: int) -> int:
    """The largest of all ranks' numbers."""
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())


def gather_rows(accelerator: Any, value: Tensor, counts: Sequence[int]) -> Tensor:
    """[n, ...] on each rank -> [N, ...] on all; `counts` has every rank's n."""
    most = max(counts)
    padded = value.new_zeros(most, *value.shape[1:])
    padded[: len(value)] = value
    gathered = accelerator.gather(padded)
    return torch.cat([gathered[rank * most : rank * most + count] for rank, count in enumerate(counts)])


def shares(owners: Sequence[int], world: int) -> tuple[list[int], list[int]]:
    """Gives every chosen row to a rank so that ranks have equal numbers, and as few rows as possible move.

    Args:
        owners: the rank that holds each of the M chosen rows.
        world: W.

    Returns:
        The rank that trains each row, and the positions (among the M) of those that move.
    """
    target = [len(owners) // world + (rank < len(owners) % world) for rank in range(world)]
    held = [owners.count(rank) for rank in range(world)]
    # The ranks that hold most get the larger shares, so that nothing moves for the remainder's sake.
    for share, rank in zip(sorted(target, reverse=True), sorted(range(world), key=lambda r: -held[r]), strict=True):
        target[rank] = share
    trained_by, moving = list(owners), []
    taken = [0] * world
    for position, owner in enumerate(owners):
        if taken[owner] < target[owner]:
            taken[owner] += 1
        else:
            moving.append(position)
    for position in moving:
        rank = next(r for r in range(world) if taken[r] < target[r])
        trained_by[position] = rank
        taken[rank] += 1
    return trained_by, moving


def exchange_rows(
    accelerator: Any,
    mine: Mapping[int, Mapping[str, Tensor]],
    owners: Sequence[int],
    template: Mapping[str, Tensor],
) -> dict[int, dict[str, Tensor]]:
    """Sends the rows that change ranks to everybody.

    Args:
        mine: of the moving rows, those that this rank holds, by their position in the list of moving rows.
        owners: the rank that holds each moving row.
        template: any row of this rank, for the keys and types.

    Returns:
        All moving rows by position, without padding.
    """
    device = template["input_ids"].device
    world = accelerator.num_processes
    counts = [owners.count(rank) for rank in range(world)]
    positions = [[p for p, owner in enumerate(owners) if owner == rank] for rank in range(world)]
    held = [mine[p] for p in positions[accelerator.process_index]]
    lengths = torch.tensor([len(row["input_ids"]) for row in held], device=device, dtype=torch.long)
    all_lengths = gather_rows(accelerator, lengths, counts).tolist()
    width = max(all_lengths)
    padding = Padding(token=0)
    received: list[dict[str, Tensor]] = [{} for _ in all_lengths]
    for key in sorted(template):
        sequence = template[key].ndim > 0 and len(template[key]) == len(template["input_ids"])
        shape = (width, *template[key].shape[1:]) if sequence else tuple(template[key].shape)
        block = template[key].new_full((len(held), *shape), padding.value(key))
        for i, row in enumerate(held):
            if sequence:
                block[i, : len(row[key])] = row[key]
            else:
                block[i] = row[key]
        for i, value in enumerate(gather_rows(accelerator, block, counts)):
            received[i][key] = value[: all_lengths[i]] if sequence else value
    order = [p for rank in range(world) for p in positions[rank]]
    return dict(zip(order, received, strict=True))
