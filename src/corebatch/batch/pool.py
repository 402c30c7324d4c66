"""The pool of all ranks: what is known of every row, on every rank alike.

Shape suffixes: N rows of the pool over all ranks, n rows on this rank, P features, W ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corebatch.batch.claims import Claim
from corebatch.distributed.ranks import Ranks
from corebatch.scoring import Scores

COLUMNS = ("ids", "sources", "lengths", "tokens", "eligible", "batches", "widths")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What is known of the pool's rows before any is scored, in the order of their global example ids.

    Attributes:
        ids, sources, lengths, tokens, ranks, rows, batches, widths: LongTensor [N] on the CPU: example id, source,
            tokens without padding, trained tokens, the rank that holds the row, its number there and that of the batch
            in which it was drawn, and the width to which that batch was padded.
        eligible: BoolTensor [N] on the CPU: False for copies that a loader adds to even out ranks; they are scored
            (every rank runs the same forwards) but cannot be chosen.
        factors: float64 [N] on the CPU: by how much each row's loss counts in what the step claims, beside the unit of
            the loss (`corebatch.objective.Claim`); None: ones.
    """

    ids: Tensor
    sources: Tensor
    lengths: Tensor
    tokens: Tensor
    ranks: Tensor
    rows: Tensor
    batches: Tensor
    widths: Tensor
    eligible: Tensor
    factors: Tensor | None = None


def gather_pool(ranks: Ranks, columns: Mapping[str, Tensor], counts: Sequence[int], *, repeats: bool = False) -> Pool:
    """Joins the rows of all ranks and sorts them by example id; of equal ids the first rank's is eligible.

    Args:
        columns: integers [n] of this rank's rows, named as in COLUMNS.
        counts: every rank's n.
        repeats: whether all of equal ids are eligible.
    """
    mine = torch.arange(counts[ranks.index])
    integers = torch.stack([*(columns[name].cpu().long() for name in COLUMNS), mine], dim=1)
    integers = ranks.gather_rows(integers, counts, "columns").cpu()
    holders = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    # By id; of equal ids the eligible copy first, then the lower rank's.
    order = torch.sort(integers[:, 4], descending=True, stable=True).indices
    order = order[torch.sort(integers[order, 0], stable=True).indices]
    integers, holders = integers[order], holders[order]
    ids, sources, lengths, tokens, eligible, batches, widths, rows = integers.unbind(dim=1)
    first = torch.ones(len(ids), dtype=torch.bool)
    first[1:] = (ids[1:] != ids[:-1]) | repeats
    return Pool(
        ids=ids,
        sources=sources,
        lengths=lengths,
        tokens=tokens,
        ranks=holders,
        rows=rows,
        batches=batches,
        widths=widths,
        eligible=first & eligible.bool(),
    )


def under(pool: Pool, claim: Claim, budget: int, *, every_row: bool) -> tuple[Pool, Claim]:
    """The pool and what is claimed of it: rows that count nothing are not chosen where `budget` others are eligible.

    Args:
        claim: of all its rows.
        every_row: whether all are trained, these too.
    """
    eligible, factors = pool.eligible, claim.factors
    if factors is None:
        return pool, claim
    counting = eligible & (factors > 0)
    if not every_row and budget <= int(counting.sum()) < int(eligible.sum()):
        claim = dataclasses.replace(claim, total=float(claim.parts[eligible].sum()))
        eligible = counting
    return dataclasses.replace(pool, eligible=eligible, factors=factors), claim


def gather_scores(ranks: Ranks, pool: Pool, wanted: Tensor, mine: Scores) -> Scores:
    """Features and losses of the pool's rows `wanted`, on every rank.

    Args:
        pool: of all ranks.
        wanted: LongTensor of positions in the pool, ascending.
        mine: scores of those that this rank holds, in the same order; of no rows where it holds none.
    """
    if ranks.count == 1:
        return mine
    parts = [mine.features] if mine.losses is None else [mine.features, mine.losses.unsqueeze(1)]
    numbers = torch.cat([part.to(mine.features.dtype) for part in parts], dim=1)
    holders = pool.ranks[wanted]
    gathered = ranks.gather_rows(numbers, torch.bincount(holders, minlength=ranks.count).tolist(), "features")
    # Rank by rank as it came; each rank's rows are in the pool's order already.
    order = torch.sort(holders, stable=True).indices
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    gathered = gathered[back.to(gathered.device)]
    width = mine.features.shape[1]
    return Scores(
        features=gathered[:, :width],
        losses=None if mine.losses is None else gathered[:, width],
        tokens=pool.tokens[wanted],
    )
