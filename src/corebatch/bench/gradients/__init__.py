"""Measuring selection on a user's own model and data: `corebatch bench`."""

from corebatch.bench.gradients.estimate import Measurement, Moment, measure
from corebatch.bench.gradients.methods import DEFAULT_PAIRS, Pair, parse_pair, parse_pairs

__all__ = ["DEFAULT_PAIRS", "Measurement", "Moment", "Pair", "measure", "parse_pair", "parse_pairs"]
