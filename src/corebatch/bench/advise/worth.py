"""How long a run takes to the same loss if the rows of its steps come, or are chosen, in another way.

A step of rate e along a gradient with squared error E lowers the loss by e |G|^2 - e^2 H (|G|^2 + E) / 2, in a
quadratic whose curvature is alike along G and along the noise (McCandlish et al. 2018, arXiv 1812.06162, equations 2.5
to 2.9). E is tr Sigma / B for B independent rows. At the rate that is best for the config as it is the second term is
half of the first. At k times that rate another way to come to the rows takes

    (1 - k / 2) / (1 - k q / 2) times the steps        q = (1 + r scale / B) / (1 + r' scale / B)

where k q is at most 1, else (2 - k) k q, at a rate that is made smaller; r = E B / tr Sigma, 1 for plain rows. (With a
rate of its own each way would take q times the steps, as in their equation 2.7; a config keeps its rate.) The time has
the cost of a step as a second factor. So where B is above the scale no way of choosing helps, whatever r is. The scale
is that of the moment at which it was measured. Nor is the rate known to be the best: the factor is that of k = 1, and
the interval holds that of k = 1/2 as well, at which noise matters less, so that what is recommended pays at either.

An error is a quadratic form in the rows' gradients. With y_i = u_i g_i over the mean size, x_i = y_i - l_i G (a step's
gradient is a ratio, `corebatch.noise`), and coefficients c_i of what a step makes of the rows less what it should,
E = sum_ij E[c_i c_j] y_i y_j: of a choice out of a pool with y, of what comes by chance with x.

Shape suffixes: P rows that were measured, K windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from corebatch.bench.advise.finding import Finding
from corebatch.bench.advise.row_gradients import RowGradients
from corebatch.errors import InputError
from corebatch.noise import Noise, noise_of_rows
from corebatch.seeds import seeded

LEAST = 0.97
"""A factor whose interval ends above is nothing to change a config for."""
RATES = (1.0, 0.5)
"""k: the factor is told for the first."""
GROUPS = 32
WINDOW = 10
"""Steps over which a choice's errors are averaged first: what it makes up for later is no error, and bias stays."""
T95 = 2.04  # Student's 97.5 % point for that many groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A way in which a step comes to its rows.

    Attributes:
        cost: of a step, in any unit.
        rates: float64 [P], how much more often than others a row is drawn, of mean 1; its weight undoes that.
        pool: rows that are drawn for one that is trained.
        chosen_PP: float64, B E[c_i c_j] of the choice out of the pool; None: all are trained.
        drawn_of: of how many rows these were drawn, of which P, at random, were measured; None: of these.
        choosing: the part of the cost that is the time of choosing itself.
        spread: standard error of the choice's error by chance, as a share of the step's, that of its pool included.
    """

    cost: float
    rates: Tensor
    pool: float = 1.0
    chosen_PP: Tensor | None = None
    drawn_of: int | None = None
    choosing: float = 0.0
    spread: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """A time factor to the same loss in the optimizer's metric, and an interval that holds those of RATES, in it and of
    the gradients themselves: 95 % by a jackknife over groups of rows.

    Attributes:
        error, error_before: r of both ways, in the optimizer's metric.
        scale, raw_scale: the noise scale, in rows, in it and of the gradients themselves.
    """

    factor: float
    low: float
    high: float
    error: float
    error_before: float
    scale: float
    raw_scale: float

    def why(self, batch: int) -> str:
        """The numbers in half a sentence."""
        raw = f", {self.raw_scale:.3g} by the gradients themselves" if self.raw_scale != self.scale else ""
        error = f"the squared error of a step's gradient is {self.error / self.error_before:.2f} times as large"
        return f"{error}, the batch of {batch} over the noise scale {batch / self.scale:.2g} (of {self.scale:.3g}{raw})"

    def numbers(self, batch: int) -> dict[str, Any]:
        """For advice.json."""
        scales = {"scale": self.scale, "raw_scale": self.raw_scale}
        known = {name: None if math.isinf(value) else value for name, value in scales.items()}
        return {"rows_of_a_step": batch, **known, "error": self.error, "error_before": self.error_before}


def plain(cost: float, rows: int) -> Arrival:
    """Rows as they are in the data."""
    return Arrival(cost=cost, rates=torch.ones(rows, dtype=torch.float64))


def chosen(
    cost: float, off_TQ: Tensor, budget: int, pool: float, metrics: Sequence[Tensor], choosing: float = 0.0
) -> Arrival:
    """Of coefficients that were seen in a series of steps: those of the estimates less those of the large batches.

    Args:
        off_TQ: float64, of all rows that were drawn of; those that were measured come first.
        metrics: inner products of the gradients of the rows that were measured.
    """
    windows, count, drawn_of = len(off_TQ) // WINDOW, len(metrics[0]), off_TQ.shape[1]
    off_KP = off_TQ[: windows * WINDOW, :count].view(windows, WINDOW, -1).mean(dim=1)
    errors = [
        _of_all(off_KP.square() @ gram_PP.diagonal(), ((off_KP @ gram_PP) * off_KP).sum(dim=1), drawn_of / count)
        for gram_PP in metrics
    ]
    by_pool = [float(gram_PP.diagonal().mean() - gram_PP.mean()) / (pool * budget * WINDOW) for gram_PP in metrics]
    return Arrival(
        cost=cost, rates=torch.ones(count, dtype=torch.float64), pool=pool, drawn_of=drawn_of, choosing=choosing,
        chosen_PP=budget * WINDOW * off_KP.T @ off_KP / windows,
        spread=max(
            float(errors_K.std() / (errors_K.mean().clamp(min=0) + own))
            for errors_K, own in zip(errors, by_pool, strict=True)
        ) / math.sqrt(windows),
    )  # fmt: skip


def _of_all(same: Any, pairs: Any, share: float) -> Any:
    """A sum over all pairs of rows, told from one over pairs of some of them, drawn at random: `same` is the part of
    pairs of a row with itself, `share` all rows over these."""
    return share * same + share**2 * (pairs - same)


def residuals(gram_PP: Tensor, sizes: Tensor) -> Tensor:
    """float64 [P]: |x_i|^2."""
    own, along = sizes / sizes.sum(), gram_PP.sum(dim=1)
    return (gram_PP.diagonal() - 2 * own * along + own.square() * along.sum()).clamp(min=0)


def relative_error(way: Arrival, gram_PP: Tensor, sizes: Tensor, kept: Tensor, noise: Noise) -> float:
    """r of a way, by some of the rows (LongTensor) and their noise."""
    gram = gram_PP[kept][:, kept]
    off = residuals(gram, sizes[kept]) / (1 - sizes[kept] / sizes[kept].sum())  # as in the trace of `noise`
    error = float((off / way.rates[kept]).mean()) / way.pool
    if way.chosen_PP is not None:
        second, share = way.chosen_PP[kept][:, kept], (way.drawn_of or len(way.rates)) / len(kept)
        error += _of_all(float(second.diagonal() @ gram.diagonal()), float((second * gram).sum()), share)
    return error * (len(kept) / float(sizes[kept].sum())) ** 2 / noise.trace


def worth(way: Arrival, before: Arrival, rows: RowGradients, batch: int) -> Worth:
    """Of one way over another.

    Args:
        batch: rows that a step trains.

    Raises:
        InputError: gradients that are all alike.
    """
    found = [_in_metric(way, before, gram_PP, rows.sizes, batch) for gram_PP in rows.metrics]
    low, high = min(one.low for one in found), max(one.high for one in found)
    return replace(found[0], low=low, high=high, raw_scale=found[-1].scale)


def _in_metric(way: Arrival, before: Arrival, gram_PP: Tensor, sizes: Tensor, batch: int) -> Worth:
    count = len(sizes)
    groups = min(GROUPS, count)
    order = torch.randperm(count, generator=seeded(0, "groups")) % groups

    def measured(kept: Tensor) -> list[float]:
        noise = noise_of_rows(gram_PP[kept][:, kept], sizes[kept])
        if not noise.trace > 0:
            raise InputError("the gradients of all rows are alike")
        one, other = (relative_error(each, gram_PP, sizes, kept, noise) for each in (way, before))
        terms = [error if math.isinf(noise.scale) else 1 + error * noise.scale / batch for error in (one, other)]
        times = [times_the_steps(terms[0] / terms[1], rate) * way.cost / before.cost for rate in RATES]
        return [*map(math.log, times), one, other, noise.scale]

    whole = measured(torch.arange(count))
    without = torch.tensor([measured((order != group).nonzero()[:, 0])[: len(RATES)] for group in range(groups)])
    variance = (without - without.mean(dim=0)).square().sum(dim=0) * (groups - 1) / groups
    off = T95 * (variance + way.spread**2 + before.spread**2).sqrt()
    ends = torch.tensor(whole[: len(RATES)])
    low, high = float((ends - off).exp().min()), float((ends + off).exp().max())
    error, error_before, scale = whole[len(RATES) :]
    return Worth(
        factor=math.exp(whole[0]), low=low, high=high, error=error, error_before=error_before, scale=scale,
        raw_scale=scale,
    )  # fmt: skip


def times_the_steps(q: float, rate: float) -> float:
    """To the same loss, where a step's error changes by q, at `rate` times the rate that is best before."""
    return (1 - rate / 2) / (1 - rate * q / 2) if rate * q <= 1 else (2 - rate) * rate * q


def gain(found: Sequence[Finding], *surely: str) -> list[Finding]:
    """The findings, the best of them recommended if its interval ends below LEAST, and these numbers lie there."""
    timed = [one for one in found if one.factor is not None and one.high is not None]
    good = [one for one in timed if max(one.high or 0.0, 0.0, *(one.numbers[name] for name in surely)) < LEAST]
    best = min(good, key=lambda one: one.factor or math.inf, default=None)
    return [replace(one, recommended=one is best) for one in found]
