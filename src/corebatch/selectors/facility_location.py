"""Facility location: medoids that represent the large batch.

CoLM (Nguyen et al., ICLR 2025, arXiv 2407.19580) chooses per source, on l1 distances, with uniform weights.
Shape suffixes: N rows of the large batch, M rows of the small batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from corebatch.errors import InputError
from corebatch.selectors._checks import check_budget, check_choice, check_finite, check_matrix
from corebatch.selectors._distances import METRICS, Metric, distances
from corebatch.selectors._greedy import TOLERANCE, greedy
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

    Raises:
        ConfigError: an option is none of these.
    """

    metric: Metric = "l1"
    weights: Literal["uniform", "cluster_size"] = "uniform"

    name: ClassVar[str] = "facility_location"
    requires: ClassVar[frozenset[str]] = frozenset({"features"})

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, METRICS)
        check_choice("weights", self.weights, ("uniform", "cluster_size"))

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
        similarities_NN = distances(features, self.metric)
        largest = similarities_NN.max()
        similarities_NN.neg_().add_(largest)  # in place: there is one N x N matrix
        rows, gains = _greedy_rows(similarities_NN, budget)
        weights = cluster_weights(similarities_NN, rows) if self.weighted else None
        return Choice(rows=rows, weights=weights, gains=gains)


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
    # The largest entry of each row, since `isfinite` of the matrix would take a second matrix for its work.
    largest_N = torch.linalg.vector_norm(similarities_NN.detach(), ord=torch.inf, dim=1)
    check_finite("similarities_NN", torch.isfinite(largest_N))
    similarities = similarities_NN.detach().cpu()
    if similarities.dtype not in (torch.float32, torch.float64):
        similarities = similarities.float()
    device = similarities_NN.device
    if budget in (0, count):
        return Selection(indices=torch.arange(budget, device=device), weights=torch.ones(budget, device=device))
    if not torch.equal(similarities, similarities.T):
        similarities = similarities.T  # the greedy reads candidates as rows
    rows, gains = _greedy_rows(similarities, budget)
    return Selection(
        indices=rows.sort().values.to(device),
        weights=torch.ones(budget, device=device),
        gains=gains.to(device, torch.float32),
    )


def _greedy_rows(similarities_CN: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    chosen, gains = greedy(similarities_CN.numpy(), budget, TOLERANCE)
    return torch.from_numpy(chosen), torch.from_numpy(gains)


def cluster_weights(similarities_NN: Tensor, rows_M: Tensor) -> Tensor:
    """M / N times the number of rows that each chosen row is nearest to: float64 [M], average 1."""
    similarities_MN = similarities_NN[rows_M]
    best_N = similarities_MN.max(dim=0).values
    nearest_MN = similarities_MN >= best_N - TOLERANCE * best_N.max()
    sizes_M = (nearest_MN / nearest_MN.sum(dim=0)).double().sum(dim=1)
    return sizes_M * (len(rows_M) / len(similarities_NN))
