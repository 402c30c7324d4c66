"""What every method is that chooses, for each pass over the data, which rows come in it.

Shape suffixes: N rows of the data set, K rows of a pass.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from corebatch.errors import ConfigError, InputError

WHAT = "coreset.sampling.learnt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What training has taught of the rows of a data set; NaN where it has taught nothing yet.

    Attributes:
        losses: float64 [N], the mean token loss of each row when it was trained last (nats per token).
        before: float64 [N], that of the time before.
        sizes: float64 [N], how long the row's gradient was then, relative to other rows: u_i sqrt(sum_t (1 - p_t)^2),
            p_t being the probability of label t.
        lengths: float64 [N], its tokens.
    """

    losses: Tensor
    before: Tensor
    sizes: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class PassRows:
    """The rows of a pass.

    Attributes:
        rows: LongTensor [K], ascending.
        weights: float64 [K], 1 over the probability with which each came; None: all count alike.
    """

    rows: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class LearntRows(ABC):
    """A way to leave out rows that are learnt. Options are keys of the block `coreset.sampling.learnt`.

    Attributes:
        whole: the share of the run, at its end, in which passes have all rows, as InfoBatch has it: an eighth.
        name: the key in `LEARNT`.
        unbiased: whether, by its weights, what is trained is in the mean what the whole data would be trained for.
    """

    whole: float = 0.125

    name: ClassVar[str]
    unbiased: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.check("whole", self.whole, 0, 1)

    def check(self, key: str, value: object, low: float, high: float, *, above: bool = False) -> None:
        """Raises ConfigError unless an option is a number in [low, high], or with `above` in (low, high]."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high or (above and value == low):  # type: ignore[operator]
            limits = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
            raise ConfigError(f"{WHAT}.{key} of {self.name} should be a number {limits}. Found {value!r}.")

    @final
    def keep(self, known: Known, number: int, random: np.random.RandomState) -> PassRows:
        """The rows of a pass.

        Args:
            number: of the pass, from 0.
            random: all randomness comes from it.

        Raises:
            InputError: a loss or size is infinite.
        """
        for what in ("losses", "sizes"):
            if bool(torch.isinf(getattr(known, what)).any()):
                raise InputError(f"{what} should be finite, or NaN where nothing is known. Found infinity.")
        kept = self._keep(known, number, random)
        if not len(kept.rows):  # a pass of nothing would never end
            return PassRows(torch.arange(len(known.losses)))
        order = kept.rows.argsort()
        return PassRows(kept.rows[order], None if kept.weights is None else kept.weights[order])

    @abstractmethod
    def _keep(self, known: Known, number: int, random: np.random.RandomState) -> PassRows:
        """Rows in any order; none stands for all."""

    def in_words(self) -> str:
        """What it is, in half a sentence."""
        honest = "by weights, the mean is that of all rows" if self.unbiased else "what is learnt counts less"
        return f"rows of each pass chosen by {self.name} ({honest})"

    def plain(self) -> Any:
        """As a config file has it, in its shortest form."""
        changed = {
            each.name: getattr(self, each.name)
            for each in dataclasses.fields(self)
            if getattr(self, each.name) != each.default
        }
        return {"method": self.name, **changed} if changed else self.name


def some_of(rows: Tensor, count: int, random: np.random.RandomState) -> Tensor:
    """`count` of the rows (LongTensor), without replacement, in any order."""
    return torch.from_numpy(random.choice(rows.numpy(), count, replace=False))
