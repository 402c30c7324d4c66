"""The base of every selector: arguments are checked once here, and source groups are dealt with here.

Shape suffixes: N rows of the large batch, M rows of the small batch, P feature columns, V validation rows;
N_g and M_g are those of one group.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from corebatch.errors import InputError
from corebatch.selectors.checks import check_budget, check_column, check_groups, check_matrix, in_float64
from corebatch.selectors.kernels.distances import some
from corebatch.types import Selection, SourceGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is to be chosen from: all rows, or those of one group.

    Attributes:
        features: float64 [N, P], finite, scaled by a power of two, on the device of what was given.
        budget: M.
        generator: all randomness comes from it.
        losses: float64 [N] on the CPU; given if the selector requires them.
        validation: float64 [V, P], scaled by a power of two of its own; given if required.
        units: what `features` was divided by over what `validation` was.
        groups: a partition of the rows, with members ascending and on the CPU; none where these are one group's.
        carried: float64 [N] on the CPU: the inner products f_i . e with the sum e of the errors of earlier choices
            (estimate less mean of these rows), which this one is to make up for; None: there is none.
        sizes: float64 [N] on the CPU: what inclusion is in proportion to; None: the norms of the features.
        costs: float64 [N] on the CPU, positive: what training each row costs; None: equally much.
    """

    features: Tensor
    budget: int
    generator: torch.Generator
    losses: Tensor | None = None
    validation: Tensor | None = None
    units: float = 1.0
    groups: tuple[SourceGroup, ...] = ()
    carried: Tensor | None = None
    sizes: Tensor | None = None
    costs: Tensor | None = None

    def within(self, group: SourceGroup) -> Problem:
        """The problem of one group by itself, which makes up for all that is carried."""
        rows, times = group.members, len(self.features) / len(group.members)
        return replace(
            self,
            features=some(self.features, rows),
            budget=group.budget,
            losses=None if self.losses is None else self.losses[rows],
            carried=None if self.carried is None else self.carried[rows] * times,
            sizes=None if self.sizes is None else self.sizes[rows],
            costs=None if self.costs is None else self.costs[rows],
            groups=(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a selector makes of one group: rows of that group, in the order chosen.

    Attributes:
        rows: LongTensor [M_g], into the rows of the group, on the CPU.
        weights: float64 Tensor [M_g], one for each entry of `rows`, such that (1/M_g) sum_i w_i f_i estimates the mean
            of the group's rows. So they average about 1 where every row is counted for, as by M / (N pi) or cluster
            sizes; a method that solves for the mean itself may do with less. None means ones.
        gains: Tensor [M_g], marginal gains in the order chosen, or None.
    """

    rows: Tensor
    weights: Tensor | None = None
    gains: Tensor | None = None


class Selector(ABC):
    """Chooses a small batch from a large one. Subclasses give the class attributes and `_choose`.

    Options are keyword-only constructor arguments. A selector holds no state: the same arguments and the
    same generator seed give the same choice.

    Attributes:
        name: the key in `SELECTORS`.
        requires: which of "features", "losses" and "validation" the choice depends on; a trainer need not
            compute the others.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[str]]

    @property
    def weighted(self) -> bool:
        """Whether weights other than one are possible."""
        return False

    @property
    def follows(self) -> bool:
        """Whether a choice can make up for the errors of earlier ones (`Problem.carried`)."""
        return False

    @property
    def draws(self) -> bool:
        """Whether rows are drawn with inclusion probabilities, in proportion to sizes."""
        return False

    @property
    def per_source(self) -> bool:
        """Whether choosing within each source is this selector's way when sources are given."""
        return False

    @final
    def select(
        self,
        features: Tensor,
        budget: int,
        generator: torch.Generator | None = None,
        *,
        groups: Iterable[SourceGroup] | None = None,
        losses: Tensor | None = None,
        validation: Tensor | None = None,
        carried: Tensor | None = None,
        sizes: Tensor | None = None,
        costs: Tensor | None = None,
    ) -> Selection:
        """Choose `budget` rows.

        Args:
            features: floating Tensor [N, P], one row an example, on any device, not modified. Rows of zeros are valid;
                the choice does not depend on their scale.
            budget: M, between 0 and N. N gives all rows in order with weight 1.
            generator: of all randomness; None is a fresh one, seeded with 0.
            groups: a partition, with budgets that sum to `budget`, each chosen apart or kept; None: one of all rows.
            losses, validation: Tensors [N], [V, P], as in `Problem`.
            carried, sizes, costs: Tensors [N], as in `Problem`; `follows` and `draws` say who takes them.

        Returns:
            Indices and weights on the device of `features`. Uniform selectors have ones. Weights of a weighted selector
            are such that (1/M) sum_i w_i g_i estimates (1/N) sum_i g_i: those of a group chosen apart are multiplied by
            (M/N)(N_g/M_g), and a row that is kept has M/N. Gains are None unless every row was chosen with one.

        Raises:
            InputError: an argument is not as above, or one that this selector requires is missing.
            NonFiniteError: NaN or inf; the rows are named.
        """
        count = check_matrix("features", features, "[N, P]").shape[0]
        budget = check_budget(budget, count)
        rows_NP, power = in_float64("features", features)
        if losses is None and "losses" in self.requires and features.shape[1] == 1:
            losses = features[:, 0]  # a one-column feature is the loss
        losses_N = None if losses is None else check_column("losses", losses, count)
        validation_VP, its_power = None, power
        if validation is not None:
            validation_VP, its_power = self._checked_validation(validation, features)
        for name, given in (("losses", losses_N), ("validation", validation_VP)):
            if name in self.requires and given is None:
                raise InputError(f"Selector `{self.name}` needs `{name}`. Found None.")
        whole = [SourceGroup(name="all", members=torch.arange(count), budget=budget)]
        parts = whole if groups is None else check_groups(groups, count, budget)
        problem = Problem(
            features=rows_NP,
            budget=budget,
            generator=torch.Generator().manual_seed(0) if generator is None else generator,
            losses=losses_N,
            validation=validation_VP,
            units=math.ldexp(1.0, min(power - its_power, 1000)),
            groups=tuple(replace(group, members=group.members.cpu().sort().values) for group in parts),
            carried=self._carried(carried, count, power),
            sizes=self._column("sizes", sizes, count),
            costs=self._column("costs", costs, count),
        )
        return self._joined(problem, self._choose_groups(problem), features.device)

    def _choose_groups(self, problem: Problem) -> list[Choice]:
        """Choose from every group. A group's choice is as if it were alone; override this to choose jointly.

        Returns:
            For each group a choice of M_g rows, by their places in its members.
        """
        return [
            Choice(rows=torch.arange(group.budget))
            if group.budget in (0, len(group.members))
            else self._choose(problem.within(group))
            for group in problem.groups
        ]

    @abstractmethod
    def _choose(self, problem: Problem) -> Choice:
        """Choose from one group, with 0 < M_g < N_g; what this selector requires is given."""

    def _joined(self, problem: Problem, choices: Sequence[Choice], device: torch.device) -> Selection:
        """Put the groups' choices together, in ascending order of rows."""
        members: list[Tensor] = []
        weights: list[Tensor] = []
        gains: list[Tensor | None] = []
        for group, choice in zip(problem.groups, choices, strict=True):
            count_g = group.budget
            assert len(choice.rows) == count_g, f"{self.name} chose {len(choice.rows)} of {count_g}"
            if count_g == 0:
                continue
            # (M/N)(N_g/M_g), as one quotient of integers so that one group gives exactly 1; M_g's expectation, if any.
            whole = (problem.budget * len(group.members)) / (len(problem.features) * (group.expected or count_g))
            ones = torch.ones(count_g, dtype=torch.float64)
            members.append(group.members[choice.rows])
            weights.append((whole if self.weighted else 1.0) * (ones if choice.weights is None else choice.weights))
            gains.append(choice.gains)
        if not members:
            nothing = torch.zeros(0, device=device)
            return Selection(indices=nothing.long(), weights=nothing)
        indices, order = torch.cat(members).sort()
        known = [gain for gain in gains if gain is not None]
        return Selection(
            indices=indices.to(device),
            weights=torch.cat(weights)[order].to(device, torch.float32),
            gains=torch.cat(known).to(device, torch.float32) if len(known) == len(gains) else None,
        )

    def _carried(self, given: object, count: int, power: int) -> Tensor | None:
        """Inner products of rows that were divided by 2^power."""
        if given is None:
            return None
        if not self.follows:
            raise InputError(f"Selector `{self.name}` cannot make up for earlier errors. Found `carried`.")
        return check_column("carried", given, count) * math.ldexp(1.0, min(-2 * power, 1000))

    def _column(self, name: str, given: object, count: int) -> Tensor | None:
        """Sizes or costs, checked."""
        if given is None:
            return None
        if not self.draws:
            raise InputError(f"Selector `{self.name}` draws with no inclusion probabilities. Found `{name}`.")
        column_N = check_column(name, given, count)
        least = float(column_N.min())
        if least < 0 or (least == 0 and name == "costs"):
            raise InputError(f"`{name}` should be {'positive' if name == 'costs' else 'not negative'}. Found {least}.")
        return column_N

    @staticmethod
    def _checked_validation(validation: Tensor, features: Tensor) -> tuple[Tensor, int]:
        check_matrix("validation", validation, "[V, P]")
        if validation.shape[1] != features.shape[1]:
            raise InputError(
                f"`validation` should have as many columns as `features`, {features.shape[1]}. "
                f"Found shape {tuple(validation.shape)}."
            )
        return in_float64("validation", validation.to(features.device))
