"""Many rows: what compares all pairs of them works in blocks, so that time and memory grow with N and not with N^2.

Up to 2 x `BLOCK` rows there is one block, of all rows. Blocks depend on the rows alone, never on chance: a sampler that
is unbiased within blocks is unbiased, and every rank makes the same.

Shape suffixes: N rows of the large batch, P feature columns, B blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 2048
"""The most rows of a block, where there are more than twice as many."""
FEW = 512
"""Up to so many choices, a greedy method looks at all rows each time, however many there are."""

_ROUNDS = 5  # of power iteration: a direction along which rows differ much is enough


def fits(rows: int, most: int | None = None) -> bool:
    """Whether so many rows are one block; `most` is `BLOCK` by default."""
    return rows <= 2 * (BLOCK if most is None else most)


def near(features_NP: Tensor, most: int | None = None) -> list[Tensor]:
    """Blocks of rows that lie near each other: cut across the direction in which they differ most, again and again.

    Args:
        features_NP: float64.
        most: rows in a block; `BLOCK` by default.

    Returns:
        LongTensors on the CPU, ascending, of sizes that differ by one at most; together they are all rows.
    """
    blocks = _count(len(features_NP), most)
    pieces = [(torch.arange(len(features_NP)), blocks)]
    done: list[Tensor] = []
    while pieces:
        rows, parts = pieces.pop()
        if parts == 1:
            done.append(rows.sort().values)
            continue
        everything = len(rows) == len(features_NP)
        along_N = _along(features_NP if everything else features_NP[rows.to(features_NP.device)])
        rows = rows[along_N.argsort(stable=True)]
        left = parts // 2
        middle = len(rows) * left // parts
        pieces += [(rows[middle:].sort().values, parts - left), (rows[:middle].sort().values, left)]
    return done


def dealt(features_NP: Tensor, key_N: Tensor | None = None, most: int | None = None) -> list[Tensor]:
    """Blocks that are cross-sections of all rows: dealt in turn, in the order along their main direction.

    Args:
        features_NP: float64.
        key_N: another order, largest first.
        most: as in `near`.

    Returns:
        As `near`.
    """
    blocks = _count(len(features_NP), most)
    if blocks == 1:
        return [torch.arange(len(features_NP))]
    order = (_along(features_NP) if key_N is None else key_N).argsort(stable=True, descending=True)
    return [order[start::blocks].sort().values for start in range(blocks)]


def shares(sizes: list[int], budget: int) -> list[int]:
    """`budget` shared in proportion to the sizes, in integers: what is due up to a block less what was given before."""
    total, due, given = sum(sizes), 0, []
    for size in sizes:
        before = due
        due += size
        given.append(budget * due // total - budget * before // total)
    return given


def with_shares(blocks: list[Tensor], budget: int) -> list[tuple[Tensor, int]]:
    """Each block with its share of the budget."""
    return list(zip(blocks, shares([len(block) for block in blocks], budget), strict=True))


def for_greedy(features_NP: Tensor, budget: int, key_N: Tensor | None = None) -> list[tuple[Tensor, int]]:
    """Blocks of a greedy method, as `dealt`, each with its share: one block of all rows for `FEW` choices or less."""
    few = budget <= FEW
    return with_shares([torch.arange(len(features_NP))] if few else dealt(features_NP, key_N), budget)


def _count(rows: int, most: int | None = None) -> int:
    return 1 if fits(rows, most) else -(-rows // (BLOCK if most is None else most))


def _along(rows_NP: Tensor) -> Tensor:
    """How far each row lies along the direction in which all differ most, nearly: float64 [N] on the CPU.

    By power iteration from the row that is farthest from the mean, so that the order of rows does not matter.
    """
    mean_P = rows_NP.mean(dim=0)
    squares_N = torch.linalg.vector_norm(rows_NP, dim=1).square_() - 2.0 * (rows_NP @ mean_P)
    direction_P = rows_NP[int(squares_N.argmax())] - mean_P
    for _ in range(_ROUNDS):
        length = torch.linalg.vector_norm(direction_P)
        along_N = rows_NP @ direction_P - mean_P @ direction_P
        if not bool(length > 0):
            break
        along_N /= length
        direction_P = rows_NP.T @ along_N - mean_P * along_N.sum()
    return along_N.cpu()
