"""The rows of a data set in order of their similarity to each of some queries, a window of the order at a time.

A full order would be Q x N numbers. Here a pass over all rows keeps the next D of each query, so memory is Q x D and a
tile, and most methods need one pass.

Shape suffixes: Q queries, N rows of the data set, P columns, D places of a window, B rows of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from corebatch.subset.matrix import Matrix

Tiles = Callable[[], Iterator[tuple[int, int, Tensor]]]
"""A pass over all similarities: (first query, first row, floating [Q', B]) of rectangles that cover Q x N."""

TILE = 2**21
"""Numbers of a tile: 16 MB in float64."""

_WINDOW = 2**24  # places of all queries together, 128 MB
_LEAST = 32  # places of a query's window: passes cost more than places
_LOW = 0xFFFFFFFF
_NONE, _ALL = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max


def windows(tiles: Tiles, queries: int, count: int, wanted: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Each query's rows from the most similar to the least; ties go to the smaller row.

    Similarities are compared as float32, so that those computed in float64 tie where they are the same but for
    rounding.

    Args:
        tiles: gives the same similarities in each pass, none of them NaN.
        queries: Q.
        count: N, below 2^32.
        wanted: about how many different rows are needed in all; says how deep the first window is.

    Yields:
        LongTensor [Q, D], rows; float32 [Q, D], their similarities. Together the windows are all N places.
    """
    depth = max(_LEAST, min(2 * -(-wanted // queries), _WINDOW // queries))
    last_Q1 = torch.full((queries, 1), _ALL)
    done = 0
    while done < count:
        places = min(depth, count - done)
        best_QD = torch.full((queries, places), _NONE)
        for query, row, similarities_QB in tiles():
            inside = slice(query, query + len(similarities_QB))
            keys_QB = _keys(similarities_QB, row)
            keys_QB.masked_fill_(keys_QB >= last_Q1[inside], _NONE)
            best_QD[inside] = torch.cat([best_QD[inside], keys_QB], dim=1).topk(places, dim=1).values
        last_Q1 = best_QD[:, -1:]
        done += places
        yield _LOW - (best_QD & _LOW), _values(best_QD >> 32)


def cosines(queries_QP: Tensor, rows: Matrix) -> Tiles:
    """Inner products of the queries with the rows' directions: cosines, where the queries have length one.

    Rounded to multiples of 2^-30, so that right angles tie.
    """
    wide_QP = queries_QP.double()

    def tiles() -> Iterator[tuple[int, int, Tensor]]:
        for first, block_BP in rows.blocks(max(1, TILE // max(len(wide_QP), rows.width))):
            yield 0, first, (wide_QP @ directions(block_BP).T).mul_(2.0**30).round_().mul_(2.0**-30)

    return tiles


def directions(rows_BP: Tensor) -> Tensor:
    """The rows divided by their Euclidean lengths, in float64; rows of zeros stay zero."""
    wide_BP = rows_BP.double()
    length_B1 = torch.linalg.vector_norm(wide_BP, dim=1, keepdim=True)
    return wide_BP / length_B1.where(length_B1 > 0, torch.ones_like(length_B1))


def round_robin(turns: Iterator[tuple[Tensor, Tensor]], count: int, budget: int) -> Tensor:
    """Each query in turn names its next row; one that is chosen already is a turn lost.

    Args:
        turns: `windows`.

    Returns:
        LongTensor [budget], rows in the order chosen, all different.
    """
    free_N = torch.ones(count, dtype=torch.bool)
    chosen: list[Tensor] = []
    left = budget
    for rows_QD, _ in turns:
        named = rows_QD.T.flatten()
        named = named[free_N[named]]
        first_N = torch.full((count,), len(named)).scatter_reduce_(0, named, torch.arange(len(named)), "amin")
        new = named[first_N[named] == torch.arange(len(named))][:left]
        free_N[new] = False
        chosen.append(new)
        left -= len(new)
        if not left:
            break
    return torch.cat(chosen)


def _keys(similarities_QB: Tensor, first: int) -> Tensor:
    """Whole numbers that are ordered as (similarity, -row): int64 [Q, B]."""
    bits_QB = (similarities_QB.float() + 0.0).contiguous().view(torch.int32).long()  # + 0.0: -0 and 0 are one number
    ordered_QB = torch.where(bits_QB < 0, -(bits_QB & 0x7FFFFFFF), bits_QB)
    rows_B = torch.arange(first, first + similarities_QB.shape[1])
    return (ordered_QB << 32) | (_LOW - rows_B)


def _values(ordered: Tensor) -> Tensor:
    """The similarities of keys' upper halves."""
    sizes = ordered.abs().int().view(torch.float32)
    return torch.where(ordered < 0, -sizes, sizes)
