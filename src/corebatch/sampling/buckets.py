"""Buckets of rows of about equal length, in one dimension or, for rows of an input and an output, in two.

A bucket says how many rows make a *unit*: so many as have together the positions of one row of the largest bucket.

Shape suffixes: N rows, K buckets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow.compute as pc  # type: ignore[import-untyped]
import torch
from torch import Tensor

from corebatch.errors import DataError, InputError
from corebatch.options import check_count
from corebatch.sampling.by_length import WHAT, curriculum_odds

SHOWN = 8
"""Rows that an error names, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """Which row is in which bucket.

    Attributes:
        of: LongTensor [N], the bucket of each row.
        bounds: LongTensor [K, 1] or [K, 2], the tokens (of input and of output) that its rows have at most.
        rows: LongTensor [K], rows of a unit.
        odds: float64 [K].
    """

    of: Tensor
    bounds: Tensor
    rows: Tensor
    odds: Tensor


def powers_of_two(
    lengths: Tensor,
    shortest: int | None = None,
    longest: int | None = None,
    curriculum: str | Sequence[float] = "uniform",
) -> Buckets:
    """Buckets of at most 2^k tokens; a unit has 2^(longest - k) rows, that is the positions of one of the longest.

    Args:
        lengths: LongTensor [N], tokens of each row, at least 1.
        shortest, longest: tokens of the first and of the last bucket; None: as the rows need.

    Raises:
        InputError: no rows, or one of no token or of more than `longest`.
        ConfigError: odds of another number of buckets.
    """
    check_lengths(lengths)
    found = torch.tensor([(length - 1).bit_length() for length in lengths.tolist()])
    first = int(found.min()) if shortest is None else shortest.bit_length() - 1
    last = max(first, int(found.max())) if longest is None else longest.bit_length() - 1
    if (over := (found > last).nonzero().flatten()).numel():
        raise InputError(
            f"{WHAT}.longest should be at least the tokens of the longest row. Found {len(over)} longer than "
            f"{2**last}, rows {', '.join(map(str, over[:SHOWN].tolist()))}: cut them before, or leave longest out."
        )
    powers = 2 ** torch.arange(first, last + 1)
    odds = curriculum_odds(curriculum, len(powers))
    return Buckets(
        of=(found - first).clamp(min=0), bounds=powers.unsqueeze(1), rows=powers.flip(0) // 2**first, odds=odds
    )


def two_dimensional(inputs: Tensor, outputs: Tensor, *, buckets: int = 30, sub_buckets: int = 2) -> Buckets:
    """Buckets by input length, and within each by output length, for encoder-decoder rows.

    After Zelasko et al. 2025 ("Training and Inference Efficiency of Encoder-Decoder Speech Models", arXiv 2503.05931,
    section 3): buckets have about equally many input tokens, sub-buckets of one about equally many output tokens. A
    unit has as many rows as fit into the positions of one row of the largest input and output bounds. Rows come as
    often as they are in the data.

    Args:
        inputs, outputs: LongTensors [N], tokens of each row, at least 1.
        buckets, sub_buckets: at most so many; fewer where rows of one length are many. The defaults are NeMo's.

    Raises:
        InputError: no rows, one of no token, or unequally many inputs and outputs.
    """
    check_count("buckets", buckets)
    check_count("sub_buckets", sub_buckets)
    check_lengths(inputs)
    check_lengths(outputs)
    if len(inputs) != len(outputs):
        raise InputError(f"Each row should have an input and an output. Found {len(inputs)} and {len(outputs)}.")
    of = torch.empty_like(inputs)
    bounds: list[tuple[int, int]] = []
    edges = equal_bounds(inputs, buckets)
    kinds = torch.searchsorted(edges, inputs)
    for kind, edge in enumerate(edges.tolist()):
        members = (kinds == kind).nonzero().flatten()
        parts = equal_bounds(outputs[members], sub_buckets)
        of[members] = len(bounds) + torch.searchsorted(parts, outputs[members])
        bounds += [(edge, part) for part in parts.tolist()]
    made = torch.tensor(bounds)
    rows = made.amax(dim=0).sum() // made.sum(dim=1)
    return Buckets(of=of, bounds=made, rows=rows, odds=torch.ones(len(made), dtype=torch.float64))


def equal_bounds(lengths: Tensor, count: int) -> Tensor:
    """LongTensor [at most `count`], ascending, the last the largest length: stretches up to each that have about
    equally many tokens, none of them empty."""
    ordered = lengths.sort().values
    total = ordered.cumsum(0)
    wanted = total[-1] * torch.arange(1, count + 1) / count
    return ordered[torch.searchsorted(total.double(), wanted.double()).clamp(max=len(ordered) - 1)].unique()


def check_lengths(lengths: Tensor) -> None:
    """Raises InputError unless it is an integer Tensor [N] of at least one row, each of at least one token."""
    if lengths.ndim != 1 or lengths.dtype not in (torch.int64, torch.int32) or not len(lengths):
        raise InputError(
            f"Lengths should be an integer Tensor [N] of at least one row. Found dtype {lengths.dtype}, shape "
            f"{tuple(lengths.shape)}."
        )
    if bool((lengths < 1).any()):
        bad = (lengths < 1).nonzero().flatten()[:SHOWN].tolist()
        raise InputError(f"Every row should have a token. Found none in rows {', '.join(map(str, bad))}.")


def row_lengths(dataset: Any, column: str = "input_ids") -> Tensor:
    """LongTensor [N], the tokens of each row.

    Args:
        dataset: with a length and rows by number.
        column: with the tokens of a row or their number.

    Raises:
        DataError: no such column, or it holds something else.
    """
    if isinstance(dataset, datasets.Dataset):
        if column in dataset.column_names:
            values = dataset.with_format("arrow", columns=[column])[:].column(column)
            listed = "list" in str(values.type)
            if listed or "int" in str(values.type):
                found = pc.list_value_length(values) if listed else values
                return torch.tensor(found.fill_null(0).to_pylist(), dtype=torch.long)
        raise DataError(_no_lengths(column, f"the columns {', '.join(dataset.column_names)}"))
    lengths = []
    for number in range(len(dataset)):
        row = dataset[number]
        value = row.get(column) if isinstance(row, Mapping) else None
        if isinstance(value, int):
            lengths.append(value)
        elif isinstance(value, Sized) and not isinstance(value, str):
            lengths.append(len(value))
        else:
            raise DataError(_no_lengths(column, f"{type(value).__name__} in row {number}"))
    return torch.tensor(lengths, dtype=torch.long)


def _no_lengths(column: str, found: str) -> str:
    return (
        f"Rows by length need their tokens, or the number of these, in the column {column!r}. Found {found}. Tokenise "
        f"before training, or name a column of lengths by {WHAT}.column."
    )
