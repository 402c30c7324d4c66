"""The setting `coreset.by_length`: rows of about equal length together, with a curriculum from short to long.

Dataset Decomposition: Pouransari et al. 2024, arXiv 2405.13226. Its pieces of documents are made by
`corebatch.sampling.pieces`, its buckets by `corebatch.sampling.buckets`, and drawn by `corebatch.sampling.units`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import ConfigError
from corebatch.options import check_count, hint

CURRICULA = ("uniform", "grow_linear", "grow_p2", "grow_p100", "shrink_p100")
LEFTOVERS = ("keep", "drop")
WHAT = "coreset.by_length"


@dataclass(frozen=True, slots=True, kw_only=True)
class ByLength:
    """The setting `coreset.by_length`.

    Attributes:
        shortest, longest: tokens of the rows of the first and of the last bucket, powers of two; None: as the data
            need. A row is in the first bucket that it fits into.
        curriculum: which buckets come early: "uniform" (as in the data), "grow_linear" (odds K to 1), "grow_p2"
            (2^(K-1) to 1), "grow_p100" (100^(K-1) to 1), "shrink_p100" (1 to 100^(K-1)), or K odds from short to long.
        cycles: into how many passes, each with the whole curriculum, an epoch is divided.
        leftovers: what becomes of a bucket's rows that are too few for a whole step: "keep" trains them in a step of
            smaller units, "drop" leaves them out of the epoch, as the official code does.
        column: of the data set, with the tokens of a row or their number.
    """

    shortest: int | None = None
    longest: int | None = None
    curriculum: str | Sequence[float] = "uniform"
    cycles: int = 1
    leftovers: str = "keep"
    column: str = "input_ids"

    def __post_init__(self) -> None:
        for name in ("shortest", "longest"):
            value = getattr(self, name)
            if value is not None:
                check_count(f"{WHAT}.{name}", value, more=", a power of two, or none")
                if value & (value - 1):
                    raise ConfigError(f"{WHAT}.{name} should be a power of two. Found {value}.")
        if self.shortest is not None and self.longest is not None and self.shortest > self.longest:
            raise ConfigError(f"{WHAT}.shortest should be at most longest. Found {self.shortest} above {self.longest}.")
        check_count(f"{WHAT}.cycles", self.cycles)
        if self.leftovers not in LEFTOVERS:
            raise ConfigError(f"{WHAT}.leftovers should be keep or drop. Found {self.leftovers!r}.")
        if not isinstance(self.column, str) or not self.column:
            raise ConfigError(f"{WHAT}.column should be the name of a column. Found {self.column!r}.")
        if isinstance(self.curriculum, str):
            if self.curriculum not in CURRICULA:
                raise ConfigError(
                    f"{WHAT}.curriculum should be one of {', '.join(CURRICULA)}, or odds from the shortest bucket to "
                    f"the longest. Found {self.curriculum!r}.{hint(self.curriculum, CURRICULA)}"
                )
        else:
            object.__setattr__(self, "curriculum", tuple(_odds(self.curriculum)))

    def plain(self) -> dict[str, Any]:
        """As a config file has it."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return given | {"curriculum": self.curriculum if isinstance(self.curriculum, str) else list(self.curriculum)}

    def in_words(self) -> str:
        """What it is, in half a sentence."""
        named = (
            self.curriculum
            if isinstance(self.curriculum, str)
            else "odds " + ":".join(f"{o:g}" for o in _odds(self.curriculum))
        )
        cycles = f" in {self.cycles} cycles an epoch" if self.cycles > 1 else ""
        return f"each step's rows of one length ({named}{cycles})"


def make_by_length(value: Any) -> ByLength | None:
    """From the block `coreset.by_length`; None or "none": rows come whatever their length.

    Raises:
        ConfigError: an unknown key, or a value out of range.
    """
    if value is None or isinstance(value, ByLength):
        return value
    if value == "none":
        return None
    keys = [each.name for each in fields(ByLength)]
    if not isinstance(value, Mapping):
        raise ConfigError(f"{WHAT} should be a mapping of {', '.join(keys)}, or none. Found {value!r}.")
    for key in value:
        if key not in keys:
            raise ConfigError(f"{WHAT} has the keys {', '.join(keys)}. Found {key!r}.{hint(str(key), keys)}")
    return ByLength(**value)


def _odds(values: Any) -> list[float]:
    if not isinstance(values, Sequence) or not values or not all(_is_odds(value) for value in values):
        raise ConfigError(f"{WHAT}.curriculum: odds should be a list of numbers above 0. Found {values!r}.")
    return [float(value) for value in values]


def _is_odds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def curriculum_odds(curriculum: str | Sequence[float], count: int) -> Tensor:
    """float64 [K] of K buckets from short to long (section 3.3 and table 4 of the paper).

    Raises:
        ConfigError: odds of another number of buckets.
    """
    rising = torch.arange(count, dtype=torch.float64)
    falling = rising.flip(0)
    named = {
        "uniform": torch.ones_like(rising),
        "grow_linear": falling + 1,
        "grow_p2": 2**falling,
        "grow_p100": 100**falling,
        "shrink_p100": 100**rising,
    }
    if isinstance(curriculum, str):
        return named[curriculum]
    if len(curriculum) != count:
        raise ConfigError(f"{WHAT}.curriculum should have odds for {count} buckets. Found {len(curriculum)}.")
    return torch.tensor(list(curriculum), dtype=torch.float64)
