"""Facility location: medoids that represent the large batch.

CoLM (Nguyen et al., ICLR 2025, arXiv 2407.19580) chooses per source, on l1 distances, with uniform weights.
Shape suffixes: N rows of the large batch, M rows of the small batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from corebatch.errors import ConfigError, InputError
from corebatch.selectors.base import Choice, Problem, Selector
from corebatch.selectors.checks import (
    check_budget,
    check_choice,
    check_finite,
    check_flag,
    check_matrix,
    check_number,
)
from corebatch.selectors.kernels import blocks
from corebatch.selectors.kernels.distances import METRICS, Metric
from corebatch.selectors.kernels.greedy import TOLERANCE, greedy, greedy_of_all, stochastic_greedy, symmetric
from corebatch.selectors.kernels.medoids import Cover, medoids
from corebatch.types import Selection


@dataclass(frozen=True, kw_only=True)
class FacilityLocation(Selector):
    """Maximise sum_i max_{s in S} (C - d(i, s)), with C the largest distance, by exact greedy.

    Above 4,096 rows medoids are found within blocks of near rows and, if fewer than 4,096 are wanted, then among
    twice as many winners of the blocks (2,048 to 4,096); with `joint` within blocks alone, each with its share of every
    budget.

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

    def _choose(self, problem: Problem) -> Choice:
        if self.stochastic is None:
            return medoids(problem, self.metric, weighted=self.weighted)
        epsilon = self.stochastic
        return medoids(
            problem,
            self.metric,
            greedy=lambda matrix, count: stochastic_greedy(matrix, count, epsilon, problem.generator),
            weighted=self.weighted,
        )

    def _choose_groups(self, problem: Problem) -> list[Choice]:
        count = len(problem.features)
        if not self.joint or problem.budget in (0, count):
            return super()._choose_groups(problem)
        group_N = torch.zeros(count, dtype=torch.long)
        place_N = torch.zeros(count, dtype=torch.long)
        for number, group in enumerate(problem.groups):
            group_N[group.members] = number
            place_N[group.members] = torch.arange(len(group.members))
        chosen, gains = self._jointly(problem, group_N)
        own = [group_N[chosen] == number for number in range(len(problem.groups))]
        return [Choice(rows=place_N[chosen[mine]], gains=gains[mine]) for mine in own]

    def _jointly(self, problem: Problem, group_N: Tensor) -> tuple[Tensor, Tensor]:
        """Rows in the order chosen, so many of each group, and their gains."""
        budgets = [group.budget for group in problem.groups]
        parts = [torch.arange(len(group_N))] if blocks.fits(len(group_N)) else blocks.near(problem.features)
        sizes_GB = torch.stack([torch.bincount(group_N[part], minlength=len(budgets)) for part in parts], dim=1)
        shares = [blocks.shares(sizes, budget) for sizes, budget in zip(sizes_GB.tolist(), budgets, strict=True)]
        rows, gains = [], []
        for part, wanted in zip(parts, np.array(shares).T, strict=True):
            if wanted.sum():
                cover = Cover.of(problem.features, part, self.metric)
                places, found = greedy(cover.similarities_CC, group_N[part].numpy(), wanted.copy(), TOLERANCE)
                rows.append(part[torch.from_numpy(places)])
                gains.append(torch.from_numpy(found))
        return torch.cat(rows), torch.cat(gains)


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
    rows, gains = (torch.from_numpy(found) for found in greedy_of_all(similarities.numpy(), budget))
    return Selection(
        indices=rows.sort().values.to(device),
        weights=torch.ones(budget, device=device),
        gains=gains.to(device, torch.float32),
    )
