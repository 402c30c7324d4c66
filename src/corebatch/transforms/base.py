"""What stages 3 (normalise) and 4 (sparsify) take and give.

Shape suffixes: N rows of the large batch, P features.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeAlias

from torch import Tensor

Shapes: TypeAlias = Sequence[tuple[int, int]]


def _with_options(transform: object) -> str:
    """The class with its options: the record of a run, which a resumed run is compared with."""
    options = [name for name in inspect.signature(type(transform)).parameters if hasattr(transform, name)]
    return f"{type(transform).__name__}({', '.join(f'{name}={getattr(transform, name)!r}' for name in options)})"


class Normaliser(ABC):
    """Maps features [N, P] as the optimizer will map gradients.

    Attributes:
        linear: one scale for all rows, so that a weighted mean of mapped rows is the mapped weighted mean. Only
            linear ones go with weighted selectors.
        needs_moments: wants the live optimizer's second moments.
        needs_shapes: wants to know which columns are a matrix.
    """

    name: ClassVar[str]
    linear: ClassVar[bool]
    needs_moments: ClassVar[bool] = False
    needs_shapes: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, features: Tensor, second_moments: Tensor | None = None, shapes: Shapes | None = None) -> Tensor:
        """Features [N, P] -> [N, P].

        Args:
            features: of the large batch.
            second_moments: [P], the live optimizer's, None before its first step; for one that needs moments.
            shapes: for each block of columns the matrix (O, R) that it is, None if they are no matrices; for one
                that needs shapes.
        """

    def __repr__(self) -> str:
        return _with_options(self)

    def update(self, rows: Tensor) -> None:  # noqa: B027 (most have no history)
        """Takes the features [K, P] of what was chosen into the history, after each choice; K may be 0."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Restores what `state_dict` gave."""


class Sparsifier(ABC):
    """Maps features [N, P] to fewer or simpler ones."""

    name: ClassVar[str]

    def __repr__(self) -> str:
        return _with_options(self)

    @abstractmethod
    def __call__(self, features: Tensor, source_ids: Tensor) -> Tensor:
        """Features [N, P], integer source ids [N] -> features [N, P'].

        A sparsifier may give different columns to different sources; rows are then comparable within one source."""
