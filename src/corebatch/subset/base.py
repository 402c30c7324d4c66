"""What every method is that chooses once over a data set: arguments are checked here, so that methods are arithmetic.

Shape suffixes: N rows of the data set, M kept rows, P feature columns, Q queries, V rows of the target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from corebatch.errors import InputError
from corebatch.subset.matrix import Matrix

Follows = Literal["pool", "target", "difficulty"]
"""What the kept rows are to stand for: the data set itself; a target set; or no mean at all, but what is (not) hard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetProblem:
    """What is to be chosen from.

    Attributes:
        count: N.
        budget: M, from 1 to N.
        sources: LongTensor [N], the number of each row's source.
        source_names: by number.
        tokens: LongTensor [N], how many tokens each row has (or trains).
        features: [N, P], one row an example (an embedding, a gradient).
        target: [V, P], features of the target set.
        scores: float64 [N], a difficulty: higher is harder.
        losses: [N, Q], the loss of each row by Q queries (states of a model).
        texts: the rows as text, in order.
        target_texts: those of the target set.
        generator: all randomness comes from it.
    """

    count: int
    budget: int
    sources: Tensor
    source_names: tuple[str, ...]
    tokens: Tensor
    generator: torch.Generator
    features: Matrix | None = None
    target: Matrix | None = None
    scores: Tensor | None = None
    losses: Matrix | None = None
    texts: Sequence[str] | None = None
    target_texts: Sequence[str] | None = None


GIVEN = ("features", "target", "scores", "losses", "texts", "target_texts")
"""The fields of `SubsetProblem` that a method may require."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """What is kept.

    Attributes:
        rows: LongTensor [M], strictly ascending.
        weights: float64 [M], not negative, of mean 1: what each row's loss is multiplied by. None: ones.
        told: what the method has to say for the report, plain JSON.
    """

    rows: Tensor
    weights: Tensor | None = None
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ones(self) -> Tensor:
        """The weights, where there are none ones: float64 [M]."""
        return torch.ones(len(self.rows), dtype=torch.float64) if self.weights is None else self.weights


class SubsetMethod(ABC):
    """Chooses rows of a data set once. Subclasses are frozen dataclasses of checked options and give `_choose`.

    Attributes:
        name: the key in `SUBSETS`.
        follows: what the kept rows stand for.
        score: a scorer by whose score it goes, if it needs `scores` and none are named.
    """

    name: ClassVar[str]
    follows: ClassVar[Follows] = "pool"
    score: ClassVar[str] = "loss"

    @property
    def requires(self) -> frozenset[str]:
        """Which of `GIVEN` it needs."""
        return frozenset()

    @property
    def weighted(self) -> bool:
        """Whether weights other than one are possible."""
        return False

    @property
    def exact(self) -> bool:
        """Whether it keeps exactly as many rows as asked for; otherwise at most, and `keep` 1 leaves rows out too."""
        return True

    @final
    def choose(self, problem: SubsetProblem) -> Subset:
        """Choose M rows.

        Raises:
            InputError: something that this method requires is missing, or does not go with its options.
        """
        for what in GIVEN:
            if what in self.requires and getattr(problem, what) is None:
                raise InputError(f"Subset method `{self.name}` needs `{what}`. Found none.")
        if self.exact and problem.budget == problem.count:
            return Subset(rows=torch.arange(problem.count))
        kept = self._choose(problem)
        rows, order = kept.rows.sort()
        weights = None if kept.weights is None else kept.weights[order].double()
        least = problem.budget if self.exact else 1
        assert least <= len(rows) <= problem.budget, f"{self.name} kept {len(rows)} of {problem.budget}"
        assert bool((rows.diff() > 0).all()), f"{self.name} kept a row twice"
        if weights is not None:
            assert bool((weights >= 0).all()), f"{self.name} gave a negative weight"
            weights = weights / weights.mean()
        return Subset(rows=rows, weights=weights, told=kept.told)

    @abstractmethod
    def _choose(self, problem: SubsetProblem) -> Subset:
        """Rows in any order with weights of any scale; what this method requires is given."""
