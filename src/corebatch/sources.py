"""Stage 1, split: source ids and a budget become groups of rows that are chosen together.

All arithmetic is on integers, so that every rank and every machine splits alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from corebatch.errors import ConfigError, InputError
from corebatch.options import hint
from corebatch.types import SourceGroup

SmallSources = Literal["auto"] | Sequence[str | int] | None
"""Which sources are kept whole: "auto", a list of names (or ids), or None for none."""

Leftovers = Literal["random", "smallest"]
"""Who gets the rows that shares of sources, rounded down, leave over: at random in proportion to what was cut off, or
one each to the smallest shares, as in the official code of CoLM."""

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
    """The sources that are to be kept whole.

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


def complete_shares(shares: Mapping[str, float], sizes: Mapping[str, float], what: str) -> dict[str, float]:
    """Shares of all sources, summing to 1.

    Args:
        shares: of some sources or all, not negative, some above 0. Where all are named, they count relative to each
            other. Else they should sum to at most 1: sources that are not named share what is left in proportion to
            their sizes.
        sizes: of every source, by name.
        what: the key, for errors.

    Raises:
        ConfigError: a source that is not there, or shares above 1 where some sources are not named.
    """
    for name in shares:
        if name not in sizes:
            raise ConfigError(
                f"{what} should name sources of the data set: {', '.join(sizes)}. Found {name!r}.{hint(name, sizes)}"
            )
    others, total = [name for name in sizes if name not in shares], sum(shares.values())
    if not others:
        return {name: shares[name] / total for name in sizes}
    if total > 1 + _ROUNDING:
        raise ConfigError(
            f"{what}: shares should sum to 1, or to less, where sources that are not named ({', '.join(others)}) share "
            f"what is left. Found a sum of {total:g}."
        )
    left, whole = max(0.0, 1 - total), sum(sizes[name] for name in others)
    if left < _ROUNDING:
        return {name: shares.get(name, 0.0) / total for name in sizes}
    return {name: shares[name] if name in shares else left * sizes[name] / whole for name in sizes}


_ROUNDING = 1e-3
"""Of shares that were written with few digits: thirds, for instance."""


def check_cap(cap: object, policy: SmallSources) -> None:
    """Raises ConfigError unless the cap is none, or a share of the budget for sources that are kept."""
    if cap is None:
        return
    if isinstance(cap, bool) or not isinstance(cap, int | float) or not 0 < cap <= 1:
        raise ConfigError(f"small_sources_cap should be a share of the budget in (0, 1], or none. Found {cap!r}.")
    if policy is None:
        raise ConfigError(f"small_sources_cap {cap!r} needs small_sources. Found none.")


@dataclass(frozen=True, slots=True)
class Keeping:
    """Which sources are kept whole, and how far.

    Attributes:
        sources: by number.
        cap: the share of the budget that they may take together: they are then kept from the smallest up while they
            do. None: all are kept, as in the official code of CoLM; where they are more than the budget, the first of
            their rows in order, as there.
        weighted: whether the others are to be estimated. Then sources are kept whole or not at all, from the smallest
            up, and one row of the budget at least is left for the others.
    """

    sources: frozenset[int] = frozenset()
    cap: float | None = None
    weighted: bool = False

    def rows(self, ids: Tensor, budget: int) -> Tensor:
        """The rows that are kept: BoolTensor [N]."""
        counts = Counter(ids.tolist())
        small = sorted(self.sources & counts.keys(), key=lambda s: (counts[s], s))
        if self.cap is None and not self.weighted:
            inside = torch.isin(ids, torch.tensor(small, dtype=ids.dtype))
            return inside & (inside.cumsum(0) <= budget)
        most = budget if self.cap is None else self.cap * budget
        if self.weighted and budget < len(ids):
            most = min(most, budget - 1)
        kept, taken = [], 0
        for source in small:
            taken += counts[source]
            if taken > most:
                break
            kept.append(source)
        return torch.isin(ids, torch.tensor(kept, dtype=ids.dtype))


def split(
    source_ids: Tensor,
    budget: int,
    *,
    keeping: Keeping | None = None,
    names: Sequence[str] | Mapping[int, str] | None = None,
    per_source: bool = False,
    generator: torch.Generator | None = None,
) -> list[SourceGroup]:
    """Splits the rows of a large batch into groups with budgets.

    Args:
        source_ids: LongTensor [N].
        budget: M, 0 <= M <= N.
        keeping: which rows are kept; None keeps none. All others share the rest.
        names: names[s] is the name of source s; its number by default.
        per_source: one group for each source that is not kept, with a share in proportion to its count
            (`proportional`); otherwise one group ("rest") for them all.
        generator: rounds the shares.

    Returns:
        Groups that partition the N rows, kept ones first, the smallest before others; their budgets sum to `budget`.
        The rows of a kept source that are over the budget are a group like those that are not kept.
    """
    ids = source_ids.cpu()
    kept_N = torch.zeros(len(ids), dtype=torch.bool) if keeping is None else keeping.rows(ids, budget)

    def groups_of(rows_N: Tensor) -> dict[int, Tensor]:
        """The members of each source, by the order of their numbers."""
        return {s: (rows_N & (ids == s)).nonzero().flatten() for s in torch.unique(ids[rows_N]).tolist()}

    def group(source: int, members: Tensor, share: int, keep: bool = False) -> SourceGroup:
        name = names[source] if names is not None else str(source)
        return SourceGroup(name=name, members=members, budget=share, keep=keep)

    kept = sorted(groups_of(kept_N).items(), key=lambda item: len(item[1]))
    groups = [group(source, members, len(members), keep=True) for source, members in kept]
    rest = budget - int(kept_N.sum())
    if bool(kept_N.all()):
        return groups
    if per_source:
        others = groups_of(~kept_N)
        shares = proportional([len(members) for members in others.values()], rest, generator)
        return groups + [group(s, m, share) for (s, m), share in zip(others.items(), shares, strict=True)]
    members = (~kept_N).nonzero().flatten()
    return [*groups, SourceGroup(name="rest" if groups else "all", members=members, budget=rest)]


def proportional(counts: Sequence[int], budget: int, generator: torch.Generator | None = None) -> list[int]:
    """Shares `budget` in proportion to `counts`: each share rounded down, and the leftovers one by one.

    Args:
        counts: whole numbers that are not negative.
        budget: M, at most their sum.
        generator: leftovers are drawn with probabilities that are the remainders, by systematic sampling over the
            sources in random order (Madow 1949), so that a share's expectation is exactly in proportion. None: they go
            to the smallest shares, to the first of equals, as in the official code of CoLM.

    Returns:
        Shares that sum to `budget`, none above its count.
    """
    total = sum(counts)
    shares = [budget * count // total if total else 0 for count in counts]
    left = budget - sum(shares)
    if not left:
        return shares
    if generator is None:
        # One row at least fits wherever there is a remainder; a source without one may be full.
        open_ = [i for i, count in enumerate(counts) if shares[i] < count]
        for i in sorted(open_, key=lambda i: shares[i])[:left]:
            shares[i] += 1
        return shares
    # In whole numbers: remainders laid end to end are left x total long, and the points lie `total` apart.
    point = int(torch.randint(total, (1,), generator=generator))
    end = 0
    for i in torch.randperm(len(counts), generator=generator).tolist():
        end += budget * counts[i] % total
        if point < end:
            shares[i] += 1
            point += total
    return shares


def apportioned(shares: Tensor, total: int, generator: torch.Generator) -> Tensor:
    """Whole numbers that sum to `total`, each its share of it rounded down or up, with the share as expectation:
    systematic sampling over the sources in random order (Madow 1949).

    Args:
        shares: float64 [S], summing to 1.
        generator: of the rounding.

    Returns:
        LongTensor [S].
    """
    order = torch.randperm(len(shares), generator=generator)
    # Rounded, so that a share which is a whole number of rows is exactly that.
    ends = (shares[order].cumsum(0) * total).round(decimals=6)
    ends[-1] = total
    ends = (ends + torch.rand((), dtype=torch.float64, generator=generator)).floor().long()
    made = torch.empty(len(shares), dtype=torch.long)
    made[order] = ends.diff(prepend=ends.new_zeros(1))
    return made


def with_shares(
    source_ids: Tensor,
    budget: int,
    shares: Mapping[int, float],
    names: Sequence[str] | Mapping[int, str] | None,
    generator: torch.Generator,
) -> list[SourceGroup]:
    """Groups of sources that have a share of the budget each, and one of all others.

    Args:
        source_ids: LongTensor [N].
        budget: M, 0 <= M <= N.
        shares: by source, above 0, together below 1.
        names: names[s] is the name of source s; its number by default.
        generator: rounds M x share, up or down with that as expectation.

    Returns:
        Groups that partition the N rows. A source with too few rows has all of them; where others have, it has more.
    """
    ids = source_ids.cpu()
    apart = [(ids == source).nonzero().flatten() for source in shares]
    rest = (~torch.isin(ids, torch.tensor(list(shares), dtype=ids.dtype))).nonzero().flatten()
    wanted = [min(budget * share, len(rows)) for share, rows in zip(shares.values(), apart, strict=True)]
    for i, rows in enumerate(apart):
        missing = budget - sum(wanted) - len(rest)
        wanted[i] += min(max(missing, 0.0), len(rows) - wanted[i])
    wanted.append(max(0.0, budget - sum(wanted)))
    found = apportioned(torch.tensor(wanted, dtype=torch.float64) / max(budget, 1), budget, generator).tolist()
    called = [str(source) if names is None else names[source] for source in shares]
    return [
        SourceGroup(name=name, members=rows, budget=count, expected=mean)
        for name, rows, count, mean in zip([*called, "rest"], [*apart, rest], found, wanted, strict=True)
        if len(rows)
    ]
