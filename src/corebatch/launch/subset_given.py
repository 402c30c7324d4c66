"""What a subset's method is given that no model computes: scores of the user's own, and rows as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from corebatch.errors import ConfigError, DataError
from corebatch.mixture import Mixture
from corebatch.mixture.writing import whole_rows
from corebatch.trainer import CoresetConfig


class RowTexts(Sequence[str]):
    """The rows of a mixture as text, decoded when they are asked for; special tokens are left out."""

    def __init__(self, dataset: Any, tokenizer: Any) -> None:
        self.dataset, self.tokenizer = dataset, tokenizer

    def __len__(self) -> int:
        return len(self.dataset)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        ids = self.dataset[row]["input_ids"]
        if isinstance(row, slice):
            return [str(text) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def given_scores(scores: str, mixture: Mixture, coreset: CoresetConfig) -> Tensor:
    """Scores of a user's own, of the rows that are left: float64 [N].

    Args:
        scores: a .npy file with a number for each row in the order in which they are read, those included that have
            no trained token; or a column of the rows.
        mixture: read without weights of data sets.
        coreset: names the columns of sources and weights.

    Raises:
        ConfigError: the file is not there, or has numbers of other data.
        DataError: a row has no number in the column.
    """
    read = sum(counts.rows_read for counts in mixture.counts.values())
    if scores.endswith(".npy"):
        try:
            values = np.load(scores, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise ConfigError(f"subset.scores: {scores} should be a readable .npy file. Found: {error}.") from error
        if values.shape != (read,) or values.dtype.kind not in "fiu":
            raise ConfigError(
                f"subset.scores: {scores} should have a number for each of the {read} rows that are read. Found "
                f"{values.dtype} {values.shape}: scores of other data?"
            )
        return torch.from_numpy(np.array(values[mixture.places], dtype=np.float64))
    wanted = np.array(mixture.places)
    found: list[float] = []
    rows = whole_rows(mixture, coreset.source_column, coreset.weight_column)
    for place, example in enumerate(rows):
        if place != (wanted[len(found)] if len(found) < len(wanted) else -1):
            continue
        value = (example.values or {}).get(scores)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"{example.where}: {scores!r} (subset.scores) should be a number. Found {value!r}.")
        found.append(float(value))
    return torch.tensor(found, dtype=torch.float64)
