"""Whether a mixture's rows fit under the cap of a cut into micro-batches, and what the cut saves: from their lengths,
before training."""

from __future__ import annotations

from typing import Any

from corebatch.errors import ConfigError
from corebatch.mixture import row_lengths
from corebatch.trainer import CoresetConfig


def check_cap(coreset: CoresetConfig, dataset: Any) -> None:
    """Raises ConfigError for a cap on a micro-batch's positions below the longest row, with the row's number.

    Args:
        dataset: of a mixture.
    """
    most, multiple = coreset.cut.most, coreset.cut.multiple
    if most is None or not len(dataset):
        return
    lengths = row_lengths(dataset)
    number = int(lengths.argmax())
    longest = int(lengths[number])
    if (width := -(-longest // multiple) * multiple) > most:
        rounded = f", which are rounded up to {width:,}" if width > longest else ""
        raise ConfigError(
            f"coreset.micro_batches.most should leave room for the longest row. Found {most:,} positions, and row "
            f"{number:,} of the mixture ({dataset[number]['source']}) with {longest:,} tokens{rounded}. Raise it, or "
            "cut rows off (max_length)."
        )
