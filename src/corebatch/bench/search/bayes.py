"""Shares on the simplex by multi-fidelity Bayesian optimisation (ADMIRE-BayesOpt): a Gaussian process of the loss over
shares and fidelities, and the run that tells the most about the best whole run for what it costs.

The loss is modelled over the square roots of shares, so that a distance is Hellinger's and small sources count. A run
is proposed by max-value entropy search (arXiv 1703.01968, over fidelities 1901.08275) over its cost. A proposal depends
on the trials that are done and on the seed alone.

Shape suffixes: S shares that sum to 1, C candidates, T trials.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import MissingExtraError
from corebatch.seeds import random_states, seeded

CANDIDATES = 512
"""Points of the simplex among which a run is proposed: half anywhere, half about the best three."""
SPREAD = 0.4
"""Standard deviation of the logarithms of shares, about those of the best."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A run that is done, or one that is proposed.

    Attributes:
        shares: of the rows that are drawn; they sum to 1.
        cost: relative to a whole run's, in (0, 1]; it stands for the fidelity.
        value: the loss that it came to; None: none, or none that is finite.
    """

    shares: tuple[float, ...]
    cost: float
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the model takes for the best shares, and what it expects of a whole run with them.

    Attributes:
        gains: for each of the shares that it is compared with, by how much lower the loss is, and the standard
            deviation of that.
    """

    shares: tuple[float, ...]
    loss: float
    gains: tuple[tuple[float, float], ...]


def opening(own: Sequence[float], costs: Sequence[float], seed: int) -> list[Trial]:
    """The first runs, the cheap ones before the dear: the data's own shares, equal ones, and some at random; then those
    two as whole runs.

    Args:
        own: the data's shares [S].
        costs: of the fidelities, ascending.
    """
    named = [_rounded(torch.tensor(own, dtype=torch.float64)), _rounded(torch.ones(len(own), dtype=torch.float64))]
    drawn = _anywhere(len(own) // 2 + 1, len(own), seeded(seed, "opening"))
    made = [Trial(shares=each, cost=costs[0]) for each in (*named, *map(_rounded, drawn))]
    return made + [Trial(shares=each, cost=costs[-1]) for each in named if len(costs) > 1]


def propose(done: Sequence[Trial], costs: Sequence[float], count: int, seed: int) -> list[Trial]:
    """The next `count` runs, to be made side by side. `done`: trials, some of them with a value.

    Raises:
        MissingExtraError: BoTorch is not installed.
    """
    botorch = require_botorch()
    made: list[Trial] = []
    with random_states(devices=[]), botorch.quiet():
        torch.manual_seed(seed)
        model = botorch.fitted(done)
        for number in range(count):
            shares_CS = _candidates(done, seeded(seed, len(done), number))
            waiting = torch.stack([_point(each) for each in made])[:, None] if made else None
            worth = botorch.worth(model, shares_CS, costs, waiting)  # [fidelities, C]
            best = int(worth.argmax())
            fidelity, candidate = divmod(best, len(shares_CS))
            made.append(Trial(shares=_rounded(shares_CS[candidate]), cost=costs[fidelity]))
    return made


def best(done: Sequence[Trial], others: Sequence[Sequence[float]], seed: int) -> Found:
    """The shares of which a whole run is expected to be the best, and to be surely good: the lowest mean plus a
    standard deviation. `others`: shares that they are compared with.

    Raises:
        MissingExtraError: BoTorch is not installed.
    """
    botorch = require_botorch()
    with random_states(devices=[]), botorch.quiet(), torch.no_grad():
        torch.manual_seed(seed)
        with torch.enable_grad():
            model = botorch.fitted(done)
        tried = torch.tensor([each.shares for each in done], dtype=torch.float64)
        shares_CS = torch.cat([tried, _candidates(done, seeded(seed, "best"))])
        belief = model.posterior(_inputs(shares_CS, 1.0))
        pick = int((belief.variance.sqrt() - belief.mean).squeeze(-1).argmin())  # the model is of minus the loss
        shares = _rounded(shares_CS[pick])
        compared = torch.tensor([shares, *map(tuple, others)], dtype=torch.float64)
        joint = model.posterior(_inputs(compared, 1.0))
        mean, covariance = joint.mean.squeeze(-1), joint.distribution.covariance_matrix
    gains = []
    for other in range(1, len(compared)):
        variance = covariance[0, 0] + covariance[other, other] - 2 * covariance[0, other]
        gains.append((float(mean[0] - mean[other]), math.sqrt(max(0.0, float(variance)))))
    return Found(shares=shares, loss=-float(mean[0]), gains=tuple(gains))


def _rounded(shares_S: Tensor) -> tuple[float, ...]:
    """To six digits: as a config file has them."""
    digits = [round(share, 6) for share in (shares_S / shares_S.sum()).tolist()]
    digits[digits.index(max(digits))] += 1 - sum(digits)
    return tuple(round(share, 6) for share in digits)


def _anywhere(count: int, sources: int, generator: torch.Generator) -> Tensor:
    """Shares [count, S] evenly over the simplex."""
    drawn = torch.rand(count, sources, generator=generator, dtype=torch.float64).clamp(min=1e-12).log().neg()
    return drawn / drawn.sum(dim=1, keepdim=True)


def _candidates(done: Sequence[Trial], generator: torch.Generator) -> Tensor:
    """Shares [C, S]."""
    known = sorted((each for each in done if each.value is not None), key=lambda each: (-each.cost, each.value))
    near = torch.tensor([each.shares for each in known[:3]], dtype=torch.float64).clamp(min=1e-4)
    sources = near.shape[1]
    moves = SPREAD * torch.randn(CANDIDATES // 2, sources, generator=generator, dtype=torch.float64)
    close = near[torch.arange(CANDIDATES // 2) % len(near)] * moves.exp()
    close = close / close.sum(dim=1, keepdim=True)
    return torch.cat([_anywhere(CANDIDATES // 2, sources, generator), close])


def _inputs(shares_CS: Tensor, cost: float) -> Tensor:
    """What the model sees of runs: [C, S + 1]."""
    return torch.cat([shares_CS.sqrt(), torch.full((len(shares_CS), 1), cost, dtype=torch.float64)], dim=1)


def _point(trial: Trial) -> Tensor:
    return _inputs(torch.tensor([trial.shares], dtype=torch.float64), trial.cost)[0]


# ---- BoTorch ---------------------------------------------------------------------------------------------------------


def require_botorch() -> Any:
    """The module that needs it. Raises MissingExtraError: it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # packages below it ask for what torch is about to drop
            return importlib.import_module("corebatch.bench.search.surrogate")
    except ImportError as error:
        raise MissingExtraError("The search for shares needs BoTorch: pip install 'corebatch[search]'.") from error
