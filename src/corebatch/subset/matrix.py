"""Rows of numbers that need not be in memory: features, losses of queries.

Shape suffixes: N rows, P columns, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corebatch.errors import InputError, NonFiniteError

BLOCK = 4_194_304
"""Numbers of a block: 16 MB in float32."""


class Matrix:
    """N rows of P columns over a numpy array, which may be a memory-mapped file, or over a tensor.

    What is read is a float32 copy on the CPU, so a method holds what it asks for and no more.

    Raises:
        InputError: not a floating matrix with a row and a column at least.
    """

    def __init__(self, values: Tensor | NDArray[Any], name: str = "features") -> None:
        good = isinstance(values, Tensor) and values.is_floating_point()
        good = good or (isinstance(values, np.ndarray) and values.dtype.kind == "f")
        if not good or values.ndim != 2 or 0 in values.shape:
            shown = isinstance(values, Tensor | np.ndarray)
            found = f"dtype {values.dtype}, shape {tuple(values.shape)}" if shown else type(values).__name__
            raise InputError(f"`{name}` should be a floating matrix [N, P] with a row and a column. Found {found}.")
        self.name = name
        self._array = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else values

    def __len__(self) -> int:
        return len(self._array)

    @property
    def width(self) -> int:
        """P."""
        return int(self._array.shape[1])

    def take(self, rows: Tensor) -> Tensor:
        """Some rows, in the order asked for: float32 [len(rows), P]."""
        return torch.from_numpy(self._array[rows.numpy()].astype(np.float32, copy=False))

    def blocks(self, size: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """All rows in order, as (the number of the first, float32 [B, P]) with B at most `size`; None: 16 MB each."""
        size = max(1, BLOCK // self.width) if size is None else size
        for start in range(0, len(self), size):
            yield start, torch.from_numpy(np.array(self._array[start : start + size], dtype=np.float32))

    def check(self, count: int | None = None) -> None:
        """Raises InputError unless there are `count` rows, NonFiniteError for NaN or inf, with the first row."""
        if count is not None and len(self) != count:
            raise InputError(f"`{self.name}` should have a row for each of the {count} rows. Found {len(self)}.")
        for start, block in self.blocks():
            bad = (~torch.isfinite(block)).any(dim=1).nonzero().flatten()
            if len(bad):
                raise NonFiniteError(f"`{self.name}` should be finite. Found NaN or inf in row {start + int(bad[0])}.")
