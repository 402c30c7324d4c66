"""What of the search is BoTorch's: the Gaussian process over shares and fidelities, and the worth of a run.

Shape suffixes: S shares, C candidates.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from botorch.acquisition.cost_aware import InverseCostWeightedUtility
from botorch.acquisition.max_value_entropy_search import qMultiFidelityMaxValueEntropy
from botorch.acquisition.utils import project_to_target_fidelity
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskMultiFidelityGP
from botorch.models.cost import AffineFidelityCostModel
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

SAMPLES = 16
"""Of the best value of a whole run, over which information is averaged."""


@contextmanager
def quiet() -> Iterator[None]:
    """Few runs fit a model badly, and BoTorch says so each time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def fitted(done: Sequence[Any]) -> Any:
    """A model of minus the loss, given trials (`bayes.Trial`); those without a value are left out."""
    known = [each for each in done if each.value is not None]
    shares = torch.tensor([each.shares for each in known], dtype=torch.float64).sqrt()
    costs = torch.tensor([[each.cost] for each in known], dtype=torch.float64)
    values = torch.tensor([[-each.value] for each in known], dtype=torch.float64)
    model = SingleTaskMultiFidelityGP(torch.cat([shares, costs], dim=1), values, data_fidelities=[shares.shape[1]])
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def worth(model: Any, shares_CS: Tensor, costs: Sequence[float], waiting: Tensor | None) -> Tensor:
    """[fidelities, C]: nats that a run would tell of the best value of a whole run, over its cost.

    Args:
        waiting: runs [W, 1, S + 1] that are proposed already.
    """
    count, sources = shares_CS.shape

    def at(cost: float) -> Tensor:
        return torch.cat([shares_CS.sqrt(), torch.full((count, 1), cost, dtype=torch.float64)], dim=1)

    tells = qMultiFidelityMaxValueEntropy(
        model,
        candidate_set=at(1.0),
        num_mv_samples=SAMPLES,
        X_pending=None if waiting is None else waiting[:, 0],
        cost_aware_utility=InverseCostWeightedUtility(AffineFidelityCostModel({sources: 1.0}, fixed_cost=0.0)),
        project=lambda inputs: project_to_target_fidelity(inputs, target_fidelities={sources: 1.0}, d=sources + 1),
    )
    with torch.no_grad():
        return torch.stack([tells(at(cost)[:, None]) for cost in costs])
