"""With what weight examples and sources are trained over a series: 1 is right, whatever one step looks like.

Shape suffixes: P population, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanWeights:
    """Mean weights: what coefficients of the estimates come to, by those of the large batches.

    Attributes:
        sources: of each source's examples together, by name; 1 is what the large batches have.
        sources_noise: the largest standard error of a source's, as if steps were independent.
        least, greatest: of a single example.
        noise: the standard error of a single example's, root mean square over examples. Of some hundred examples with
            fair weights the extremes lie about three of it from 1.
        spread: standard deviation over examples, without that noise.
    """

    sources: Mapping[str, float]
    sources_noise: float
    least: float
    greatest: float
    noise: float
    spread: float


def mean_weights(estimates_TP: Tensor, large_TP: Tensor, sources_P: Tensor, names: Any) -> MeanWeights:
    """Of the examples that came at all.

    Args:
        names: names[s] is the name of source s.
    """
    there_TP = large_TP > 0
    visits_P = there_TP.sum(dim=0).double()
    weights_TP = estimates_TP / large_TP.max()
    means_P = weights_TP.sum(dim=0) / visits_P.clamp(min=1)
    squares_P = weights_TP.square().sum(dim=0) / visits_P.clamp(min=1) - means_P.square()
    variances_P = squares_P.clamp(min=0) / visits_P.clamp(min=1)
    by_source, noises = {}, []
    for source in sources_P.unique().tolist():
        own = (sources_P == source) & (visits_P > 0)
        if bool(own.any()):
            visits = visits_P[own]
            by_source[str(names[source])] = float(visits @ means_P[own] / visits.sum())
            noises.append(math.sqrt(float(visits.square() @ variances_P[own])) / float(visits.sum()))
    came = visits_P > 0
    noise = float(variances_P[came].mean())
    return MeanWeights(
        sources=by_source,
        sources_noise=max(noises),
        least=float(means_P[came].min()),
        greatest=float(means_P[came].max()),
        noise=math.sqrt(noise),
        spread=math.sqrt(max(0.0, float((means_P[came] - means_P[came].mean()).square().mean()) - noise)),
    )
