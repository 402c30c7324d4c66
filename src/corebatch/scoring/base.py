"""What a scorer takes and gives (stage 2: large batch -> features).

Shape suffixes: B rows of one forward, N rows of the large batch, T tokens, P features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from corebatch.errors import InputError
from corebatch.model.moments import Coordinates

LossUnit = Literal["token_mean", "example_mean"]
"""What is minimised: the mean over all tokens of a step (an example counts with the sum of its token losses, as in
today's Trainer), or the mean over examples of each one's mean (the official CoLM code)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What scoring some rows gives.

    Attributes:
        features: float Tensor [N, P]: one row an example.
        losses: float Tensor [N], the sum of each example's token losses, or None if no forward was run.
        tokens: LongTensor [N]: how many tokens of each example are trained.
    """

    features: Tensor
    losses: Tensor | None
    tokens: Tensor

    @staticmethod
    def cat(parts: Sequence[Scores]) -> Scores:
        """The rows of several forwards, one below the other."""
        losses = [part.losses for part in parts if part.losses is not None]
        return Scores(
            features=torch.cat([part.features for part in parts]),
            losses=torch.cat(losses) if len(losses) == len(parts) else None,
            tokens=torch.cat([part.tokens for part in parts]),
        )

    def take(self, rows: Tensor) -> Scores:
        """Those of some rows (LongTensor), in their order."""
        there = rows.to(self.features.device)
        return Scores(
            features=self.features[there],
            losses=None if self.losses is None else self.losses[there],
            tokens=self.tokens[rows.to(self.tokens.device)],
        )


class Scorer(ABC):
    """Gives every example of a batch a row of features. Options are keyword arguments of the constructor.

    A scorer leaves the model as it was: weights, gradients, train/eval mode, random state.

    Attributes:
        needs_forward: whether features come from the model.
        sized_by_tokens: whether examples are drawn in proportion to the square root of their trained tokens, and not to
            their features' norms (equally, for a mean over examples).
        stands_for_loss: whether selectors that choose by loss choose by its one column.
    """

    name: ClassVar[str]
    needs_forward: ClassVar[bool] = True
    sized_by_tokens: ClassVar[bool] = False
    stands_for_loss: ClassVar[bool] = False

    def score(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Features [N, P] of a collated batch (`input_ids`, `attention_mask`, `labels`, ...), in the units of a
        loss that is a mean over tokens."""
        return self.run(model, batch).features

    def run(
        self, model: nn.Module, batch: Mapping[str, Tensor], *, loss: LossUnit = "token_mean", seed: int = 0
    ) -> Scores:
        """Features with losses and token counts.

        Args:
            model: a causal language model of transformers, with or without adapters; not wrapped by DDP.
            batch: the collated dictionary; `labels` [B, T] with -100 where nothing is trained.
            loss: the unit of the features.
            seed: of whatever randomness the scorer has (directions, projections); the same seed, the same features.

        Raises:
            InputError: the batch has no labels, or labels of another shape than the inputs.
            UnsupportedModelError: the model lacks what the scorer needs.
        """
        check_batch(batch)
        return self._run(model, batch, loss, seed)

    @abstractmethod
    def _run(self, model: nn.Module, batch: Mapping[str, Tensor], loss: LossUnit, seed: int) -> Scores: ...

    def coordinates(self) -> list[Coordinates] | None:
        """For each block of feature columns the weights that it belongs to, once a batch has been scored; None if
        features are no derivatives by single weights."""
        return None

    def shapes(self) -> list[tuple[int, int]] | None:
        """For each block of feature columns the matrix (O, R) that it is, once a batch has been scored; None if
        features are no derivatives by matrices."""
        coordinates = self.coordinates()
        return None if coordinates is None else [coordinate.shape for coordinate in coordinates]

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in vars(self).items() if not key.startswith("_"))
        return f"{type(self).__name__}({options})"


def extents(tokens: Tensor, loss: LossUnit) -> Tensor:
    """What an example's gradient grows with the square root of: its trained tokens, or in a mean over examples nothing
    but whether it has any (as in the scorer `tokens`)."""
    return tokens if loss == "token_mean" else (tokens > 0).long()


def check_batch(batch: Mapping[str, Tensor]) -> None:
    """Raises InputError unless `input_ids` and `labels` are there and go together."""
    missing = [key for key in ("input_ids", "labels") if key not in batch]
    if missing:
        raise InputError(f"A batch should have `input_ids` and `labels`. Found the keys {sorted(batch)}.")
    inputs, labels = batch["input_ids"], batch["labels"]
    if inputs.ndim != 2 or labels.shape != inputs.shape:
        raise InputError(
            f"`input_ids` and `labels` should both have shape [rows, tokens]. "
            f"Found {tuple(inputs.shape)} and {tuple(labels.shape)}."
        )
