"""Facility location: medoids that represent the large batch.

CoLM (Nguyen et al., ICLR 2025, arXiv 2407.19580) chooses per source, on l1 distances, with uniform weights.
Shape suffixes: N rows of the large batch, M rows of the small batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from corebatch.errors import ConfigError, InputError
from corebatch.selectors._checks import (
    check_budget,
    check_choice,
    check_finite,
    check_flag,
    check_matrix,
    check_number,
)
from corebatch.selectors._distances import METRICS, Metric, distances
from corebatch.selectors._greedy import TOLERANCE, greedy, greedy_of_all, stochastic_greedy, symmetric
from corebatch.selectors.base import Choice, Selector
from corebatch.types import Selection


@dataclass(frozen=True, kw_only=True)
class FacilityLocation(Selector):
    """Maximise sum_i max_{s in S} (C - d(i, s)), with C the largest distance, by exact greedy.

    Uniform weights favour examples of large norm: the mean of the chosen has the direction of the large
    batch's mean, and too great a length. "cluster_size" weights each medoid by M / N times the number of
    rows nearest to it (CRAIG: Mirzasoleiman, Bilmes, Leskovec 2020, arXiv 1906.01827, equation 5); they
    average exactly 1. A row as near to several medoids is shared among them.

    Args:
        metric: "l1", "l2" (Euclidean) or "cosine".
        weights: "uniform" or "cluster_size".
        stochastic: epsilon of stochastic greedy, 0.001 to 0.9: each step looks at N / M ln(1 / epsilon) random rows.
            None: exact greedy, which is lazy and rarely slower.
        joint: where sources have budgets, one problem over all rows in which the budgets are respected, so that
            a row may stand for rows of other sources (greedy under a partition matroid: Nemhauser, Wolsey, Fisher
            1978, at least half of the optimum). Otherwise each source is a problem of its own. Goes with uniform
            weights and exact greedy.

    Raises:
        ConfigError: an option is none of these.
    """

    metric: Metric = "l1"
    weights: Literal["uniform", "cluster_size"] = "uniform"
    stochastic: float | None = None
    joint: bool = False

    name: ClassVar[str] = "facility_location"
    requires: ClassVar[frozenset[str]] = frozenset({"features"})

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, METRICS)
        check_choice("weights", self.weights, ("uniform", "cluster_size"))
        if self.stochastic is not None:
            check_number("stochastic", self.stochastic, low=1e-3, high=0.9)
        check_flag("joint", self.joint)
        if self.joint and (self.weighted or self.stochastic is not None):
            raise ConfigError(
                f"Option `joint` goes with uniform weights and exact greedy. "
                f"Found weights {self.weights!r}, stochastic {self.stochastic!r}."
            )

    @property
    def weighted(self) -> bool:
        return self.weights == "cluster_size"

    @property
    def per_source(self) -> bool:
        return not self.weighted

    def _choose(
        self,
        features: Tensor,
        budget: int,
        generator: torch.Generator,
        *,
        losses: Tensor | None,
        validation: Tensor | None,
    ) -> Choice:
        similarities_NN = self._similarities(features)
        if self.stochastic is None:
            rows, gains = _greedy_rows(similarities_NN, budget)
        else:
            chosen, found = stochastic_greedy(similarities_NN.numpy(), budget, self.stochastic, generator)
            rows, gains = torch.from_numpy(chosen), torch.from_numpy(found)
        weights = cluster_weights(similarities_NN, rows) if self.weighted else None
        return Choice(rows=rows, weights=weights, gains=gains)

    def _choose_groups(
        self,
        features: Tensor,
        members: Sequence[Tensor],
        budgets: Sequence[int],
        generator: torch.Generator,
        *,
        losses: Tensor | None,
        validation: Tensor | None,
    ) -> list[Choice]:
        if not self.joint or sum(budgets) in (0, len(features)):
            return super()._choose_groups(features, members, budgets, generator, losses=losses, validation=validation)
        group_N = torch.zeros(len(features), dtype=torch.long)
        place_N = torch.zeros(len(features), dtype=torch.long)
        for group, inside in enumerate(members):
            group_N[inside] = group
            place_N[inside] = torch.arange(len(inside))
        similarities = self._similarities(features).numpy()
        chosen, found = greedy(similarities, group_N.numpy(), np.array(budgets), TOLERANCE)
        rows, gains = torch.from_numpy(chosen), torch.from_numpy(found)
        return [
            Choice(rows=place_N[rows[group_N[rows] == group]], gains=gains[group_N[rows] == group])
            for group in range(len(members))
        ]

    def _similarities(self, features: Tensor) -> Tensor:
        similarities_NN = distances(features, self.metric)
        largest = similarities_NN.max()
        return similarities_NN.neg_().add_(largest)  # in place: there is one N x N matrix


def select_from_similarities(similarities_NN: Tensor, budget: int) -> Selection:
    """Choose by facility location, given similarities instead of features.

    Maximises sum_i max(0, max_{s in S} similarities[i, s]) by exact greedy; ties go to the smaller index.
    Works on the given matrix, without copying it, if that is float32 or float64 and on the CPU.

    Args:
        similarities_NN: floating Tensor [N, N]; entry [i, s] says how well s represents i. Negative ones
            count as 0, since the value of choosing nothing is 0. A symmetric matrix is read faster.
        budget: M, between 0 and N.

    Returns:
        The chosen rows with weights of one, and the gains in the order chosen (None if all N are taken).

    Raises:
        InputError: the matrix is not square and floating, or the budget is out of range.
        NonFiniteError: NaN or inf; the rows are named.
    """
    count = check_matrix("similarities_NN", similarities_NN, "[N, N]").shape[0]
    if similarities_NN.shape[1] != count:
        raise InputError(f"`similarities_NN` should be square, [N, N]. Found shape {tuple(similarities_NN.shape)}.")
    budget = check_budget(budget, count)
    # Two numbers, since `isfinite` of the matrix would take a second matrix for its work. NaN goes through.
    if not bool(torch.isfinite(torch.stack(torch.aminmax(similarities_NN.detach()))).all()):
        largest_N = torch.linalg.vector_norm(similarities_NN.detach(), ord=torch.inf, dim=1)
        check_finite("similarities_NN", torch.isfinite(largest_N))
    similarities = similarities_NN.detach().cpu()
    if similarities.dtype not in (torch.float32, torch.float64):
        similarities = similarities.float()
    device = similarities_NN.device
    if budget in (0, count):
        return Selection(indices=torch.arange(budget, device=device), weights=torch.ones(budget, device=device))
    if not symmetric(similarities.numpy()):
        similarities = similarities.T  # the greedy reads candidates as rows
    rows, gains = _greedy_rows(similarities, budget)
    return Selection(
        indices=rows.sort().values.to(device),
        weights=torch.ones(budget, device=device),
        gains=gains.to(device, torch.float32),
    )


def _greedy_rows(similarities_CN: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    chosen, gains = greedy_of_all(similarities_CN.numpy(), budget)
    return torch.from_numpy(chosen), torch.from_numpy(gains)


def cluster_weights(similarities_NN: Tensor, rows_M: Tensor) -> Tensor:
    """M / N times the number of rows that each chosen row is nearest to: float64 [M], average 1."""
    similarities_MN = similarities_NN[rows_M]
    best_N = similarities_MN.max(dim=0).values
    nearest_MN = similarities_MN >= best_N - TOLERANCE * best_N.max()
    sizes_M = (nearest_MN / nearest_MN.sum(dim=0)).double().sum(dim=1)
    return sizes_M * (len(rows_M) / len(similarities_NN))
