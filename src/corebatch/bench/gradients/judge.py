"""What a method is judged by: its choices in a series of steps, against exact gradients, and what they cost.

Shape suffixes: P population, N large batch, T steps, B pools, R repeated draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from corebatch.bench.gradients.costs import Costs
from corebatch.bench.gradients.errors import Gram
from corebatch.bench.gradients.mean_weights import mean_weights
from corebatch.bench.gradients.measurement import Measurement
from corebatch.bench.gradients.methods import Method
from corebatch.bench.gradients.population import Objective, Population
from corebatch.bench.gradients.prices import prices
from corebatch.bench.gradients.series import Chooses, Series, large_batches
from corebatch.bench.gradients.windows import paired_errors, windows

POOLS_GIVEN, SHARE_GIVEN = 4, 16
"""Bias given the pool is measured in so many pools, in each by a SHARE_GIVEN-th of as many choices as a series has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """The same for all methods.

    Attributes:
        series: the large batches.
        grams: of the exact gradients of summed losses, by metric.
        costs: of scoring and training.
        cost_ratios: values of c beside the measured ones.
    """

    population: Population
    series: Series
    grams: Mapping[str, Gram]
    objective: Objective
    costs: Costs
    cost_ratios: Sequence[float]
    seed: int

    def measure(self, method: Method, chooses: Chooses, budget: int, feature_age: int | None) -> list[Measurement]:
        """At one budget, in each metric."""
        series, population = self.series, self.population
        factors_P = population.weights if method.loss == "token_mean" else 1 / population.tokens.clamp(min=1)
        pools_BN, large_TP = series.pools_TN[:POOLS_GIVEN], series.large_TP
        large, draws = pools_BN.shape[1], len(large_TP)
        chosen = chooses.of(series, budget)
        given_BRP = chooses.again(pools_BN, budget, max(2, draws // SHARE_GIVEN))
        estimates_TP, given_BP = chosen.coefficients_TP, large_batches(pools_BN, len(population))
        paid = prices(method, chosen, self.costs, large=large, budget=budget)
        of_examples = mean_weights(estimates_TP, large_TP, population.sources, population.table.names)
        return [
            Measurement(
                method=method.name,
                coreset=method.block,
                loss=method.loss,
                objective=self.objective,
                metric=name,
                budget=budget,
                large=large,
                population=len(population),
                draws=draws,
                warm_up=series.warm_up,
                micro_batch=series.micro_batch,
                windows={
                    length: {**asdict(window), **paid.worth(window.effective * large, self.costs.training.value)}
                    for length, window in windows(metric, estimates_TP, large_TP, budget, large).items()
                },
                errors=paired_errors(metric, estimates_TP, large_TP, large),
                bias_given_pool=metric.bias_share(given_BRP, given_BP),
                weights=asdict(of_examples),
                score_ms=paid.s.value * self.costs.forward_ms * large,
                scoring=method.scoring_text,
                feature_age=feature_age,
                **chosen.fields(),
                **paid.fields(self.costs, self.cost_ratios),
            )
            for name, metric in ((name, gram.scaled(factors_P)) for name, gram in self.grams.items())
        ]
