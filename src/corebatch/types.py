"""The records that travel between the rooms of a step. They are checked once, where they are made.

Shape suffixes: N rows of the large batch, M rows of the small batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from corebatch.errors import InputError

IGNORED = -100
"""The label that is not trained, everywhere in transformers."""
ID, SOURCE = "corebatch_id", "corebatch_source"
"""Keys of a batch of the pool: LongTensors [B] of example ids and sources."""
PLACES = "corebatch_places"
"""Key of a micro-batch: where the pool's rows lie in it; see `micro_batches`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceGroup:
    """Rows that are chosen together, and how many of them.

    Attributes:
        name: what the group is called in logs ("algebra", or "rest" for several sources together).
        members: LongTensor [N_g], ascending: the rows of the large batch that belong to the group.
        budget: how many of them are chosen, 0 <= budget <= N_g.
        keep: the group is a small source that is kept whole (then budget = N_g).
        expected: of which the budget was rounded at random, so that weights are by it; None: the budget itself.
    """

    name: str
    members: Tensor
    budget: int
    keep: bool = False
    expected: float | None = None

    def __post_init__(self) -> None:
        if self.members.ndim != 1 or self.members.dtype != torch.long:
            raise InputError(
                f"SourceGroup.members should be a LongTensor [N_g]. "
                f"Found dtype {self.members.dtype}, shape {tuple(self.members.shape)}."
            )
        count = len(self.members)
        if not 0 <= self.budget <= count:
            raise InputError(
                f"SourceGroup.budget should be between 0 and the {count} members of group {self.name!r}. "
                f"Found {self.budget}."
            )
        if self.keep and self.budget != count:
            raise InputError(
                f"A group that is kept whole has its size as budget. Found budget {self.budget} of {count} "
                f"in group {self.name!r}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The small batch: which rows of the large batch, and what each one's loss is multiplied by.

    Attributes:
        indices: LongTensor [M], strictly ascending, into the rows of the large batch.
        weights: float32 Tensor [M], finite, not negative. (1/M) sum_i weights_i g_i estimates the mean
            gradient of the large batch; uniform selectors have ones.
        gains: float32 Tensor [M] or None: the marginal gain of each choice, in the order chosen.
    """

    indices: Tensor
    weights: Tensor
    gains: Tensor | None = None

    def __post_init__(self) -> None:
        indices, weights = self.indices, self.weights
        if indices.ndim != 1 or indices.dtype != torch.long:
            raise InputError(
                f"Selection.indices should be a LongTensor [M]. "
                f"Found dtype {indices.dtype}, shape {tuple(indices.shape)}."
            )
        if len(indices) and int(indices[0]) < 0:
            raise InputError(f"Selection.indices should not be negative. Found {int(indices[0])}.")
        if len(indices) > 1 and not bool((indices[1:] > indices[:-1]).all()):
            raise InputError("Selection.indices should be strictly ascending. Found an index that is not.")
        if weights.shape != indices.shape or weights.dtype != torch.float32:
            raise InputError(
                f"Selection.weights should be float32 of shape {tuple(indices.shape)}. "
                f"Found dtype {weights.dtype}, shape {tuple(weights.shape)}."
            )
        if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
            raise InputError("Selection.weights should be finite and not negative. Found others.")
        if self.gains is not None and self.gains.shape != indices.shape:
            raise InputError(
                f"Selection.gains should have shape {tuple(indices.shape)}. Found {tuple(self.gains.shape)}."
            )

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def weight_max(self) -> float:
        """The largest weight; 0 if nothing was chosen."""
        return float(self.weights.max()) if len(self.weights) else 0.0

    @property
    def effective_sample_size(self) -> float:
        """(sum w)^2 / sum w^2 (Kish 1965): M for equal weights, less the more they differ; 0 if all are 0."""
        weights = self.weights.double()
        square = float(weights.square().sum())
        return float(weights.sum()) ** 2 / square if square > 0 else 0.0

    @property
    def uniform(self) -> bool:
        """Whether every weight is exactly one, so that the plain loss may be used."""
        return bool((self.weights == 1).all())
