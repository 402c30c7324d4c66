"""Stage 1, split: source ids and a budget become groups of rows that are chosen together.

All arithmetic is on integers, so that every rank and every machine splits alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from corebatch.errors import ConfigError, InputError
from corebatch.types import SourceGroup

SmallSources = Literal["auto"] | Sequence[str | int] | None
"""Which sources may be kept whole: "auto", a list of names (or ids), or None for none."""


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def encode_sources(source_ids: Tensor | Sequence[str | int] | None, count: int) -> tuple[Tensor, list[str]]:
    """Turns source ids as a user has them into positions in a sorted list of names.

    Args:
        source_ids: integer Tensor [N], a list of N strings or integers, or None (one source).
        count: N, the number of rows.

    Returns:
        LongTensor [N] with values in [0, S), and the S names.

    Raises:
        InputError: another length, another shape, or values that are neither integers nor strings.
    """
    if source_ids is None:
        return torch.zeros(count, dtype=torch.long), ["all"]
    if isinstance(source_ids, Tensor):
        if source_ids.ndim != 1 or source_ids.dtype not in _INTEGERS:
            raise InputError(
                f"Parameter `source_ids` should be an integer Tensor [N] or a list of strings. "
                f"Found dtype {source_ids.dtype}, shape {tuple(source_ids.shape)}."
            )
        values: list[str | int] = source_ids.tolist()
    else:
        if isinstance(source_ids, str):
            raise InputError(f"Parameter `source_ids` should be a list of N names. Found the string {source_ids!r}.")
        values = list(source_ids)
        for row, value in enumerate(values):
            if not isinstance(value, str | int) or isinstance(value, bool):
                raise InputError(
                    f"Parameter `source_ids` should hold strings or integers. Found {value!r} in row {row}."
                )
    if len(values) != count:
        raise InputError(
            f"Parameter `source_ids` should have one id for each of the {count} rows of `features`. "
            f"Found {len(values)}."
        )
    # Integers before strings, each in their own order: a mixed list has an order too.
    unique = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    position = {value: i for i, value in enumerate(unique)}
    return torch.tensor([position[value] for value in values], dtype=torch.long), [str(value) for value in unique]


def small_candidates(
    counts: Mapping[int, int], names: Sequence[str] | Mapping[int, str], policy: SmallSources
) -> frozenset[int]:
    """The sources that may be kept whole.

    Args:
        counts: how many examples each source has, over the data set (trainer) or the given rows (`select`).
        names: names[s] is the name of source s.
        policy: "auto" takes the sources whose share is below 1 / (number of sources); a list takes those named;
            None takes none. A name that does not occur is no error: a batch may lack a small source.

    Raises:
        ConfigError: the policy is none of these.
    """
    if policy is None:
        return frozenset()
    if isinstance(policy, str):
        if policy != "auto":
            raise ConfigError(
                f"small_sources should be 'auto', a list of source names, or none. Found the string {policy!r}."
            )
        total, sources = sum(counts.values()), len(counts)
        return frozenset(s for s, count in counts.items() if count * sources < total)
    if not isinstance(policy, Iterable):
        raise ConfigError(f"small_sources should be 'auto', a list of source names, or none. Found {policy!r}.")
    wanted = {str(name) for name in policy}
    return frozenset(s for s in counts if names[s] in wanted)


def absent_names(
    counts: Mapping[int, int], names: Sequence[str] | Mapping[int, str], policy: SmallSources
) -> list[str]:
    """The names in a list of small sources that no example has; for the arguments see `small_candidates`."""
    if policy is None or isinstance(policy, str):
        return []
    there = {names[source] for source in counts}
    return [name for name in map(str, policy) if name not in there]


def split(
    source_ids: Tensor,
    budget: int,
    *,
    candidates: frozenset[int] = frozenset(),
    names: Sequence[str] | Mapping[int, str] | None = None,
    per_source: bool = False,
) -> list[SourceGroup]:
    """Splits the rows of a large batch into groups with budgets.

    Small sources are kept whole from the smallest up while together they take at most half of the budget
    (a kept source that ate the budget would leave nothing to choose). All others share the rest in proportion
    to their counts, by largest remainders.

    Args:
        source_ids: LongTensor [N].
        budget: M, 0 <= M <= N.
        candidates: the sources that may be kept whole.
        names: names[s] is the name of source s; its number by default.
        per_source: one group for each source that is not kept; otherwise one group ("rest") for them all.

    Returns:
        Groups that partition the N rows, kept ones first; their budgets sum to `budget`.
    """
    ids = source_ids.cpu()
    counts = Counter(ids.tolist())

    def name(source: int) -> str:
        return names[source] if names is not None else str(source)

    kept: list[int] = []
    taken = 0
    for source in sorted(candidates & counts.keys(), key=lambda s: (counts[s], s)):
        if 2 * (taken + counts[source]) > budget:
            break
        kept.append(source)
        taken += counts[source]

    groups = [
        SourceGroup(name=name(s), members=(ids == s).nonzero().flatten(), budget=counts[s], keep=True) for s in kept
    ]
    others = sorted(counts.keys() - set(kept))
    rest = budget - taken
    if not others:
        return groups
    if per_source:
        shares = proportional([counts[s] for s in others], rest)
        groups += [
            SourceGroup(name=name(s), members=(ids == s).nonzero().flatten(), budget=share)
            for s, share in zip(others, shares, strict=True)
        ]
    else:
        members = torch.isin(ids, torch.tensor(others)).nonzero().flatten()
        groups.append(SourceGroup(name="rest" if kept else "all", members=members, budget=rest))
    return groups


def proportional(counts: Sequence[int], budget: int) -> list[int]:
    """Shares `budget` in proportion to `counts` by largest remainders; ties go to the first.

    No share exceeds its count as long as budget <= sum(counts).
    """
    total = sum(counts)
    if total == 0:
        return [0] * len(counts)
    shares = [budget * count // total for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: (-(budget * counts[i] % total), i))
    for i in by_remainder[: budget - sum(shares)]:
        shares[i] += 1
    return shares
