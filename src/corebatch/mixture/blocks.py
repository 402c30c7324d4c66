"""A run of examples -> its tokenised rows as one Arrow batch, and what is counted of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from corebatch.mixture.examples import Example
from corebatch.mixture.store import SCHEMA
from corebatch.mixture.tokenise import Tokeniser, TokenRow

Integers = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some rows of a mixture.

    Attributes:
        batch: the rows with a trained token, as an Arrow batch with the columns of store.SCHEMA.
        names: sources, in order of first appearance.
        source, length, trained, truncated: Integers [n] of all n rows: number in `names`, tokens, trained tokens,
            whether tokens were cut off.
    """

    batch: Any
    names: list[str]
    source: Integers
    length: Integers
    trained: Integers
    truncated: Integers


def tokenise_block(tokeniser: Tokeniser, examples: Sequence[Example]) -> Block:
    """Raises DataError or ConfigError as Tokeniser."""
    rows = tokeniser([example.row for example in examples], [example.where for example in examples])
    trained = [row.trained for row in rows]
    numbers: dict[str, int] = {}
    source = [numbers.setdefault(example.source, len(numbers)) for example in examples]
    kept = [(row, example.source) for row, example, own in zip(rows, examples, trained, strict=True) if own]
    return Block(
        batch=arrow_batch([row for row, _ in kept], [source for _, source in kept]),
        names=list(numbers),
        source=np.array(source, dtype=np.int32),
        length=np.array([len(row.input_ids) for row in rows], dtype=np.int32),
        trained=np.array(trained, dtype=np.int32),
        truncated=np.array([row.truncated for row in rows], dtype=np.int32),
    )


def arrow_batch(rows: Sequence[TokenRow], sources: Sequence[str]) -> Any:
    """Rows and their sources as an Arrow batch of store.SCHEMA."""
    lengths = [len(row.input_ids) for row in rows]
    offsets = pa.array(np.cumsum([0, *lengths], dtype=np.int32))
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(np.fromiter(chain.from_iterable(lists), np.int32, sum(lengths))))
        for lists in ((row.input_ids for row in rows), (row.labels for row in rows))
    ]
    return pa.RecordBatch.from_arrays(
        [*columns, pa.array(sources, pa.string()), pa.array(lengths, pa.int32())], schema=SCHEMA
    )
