"""Measuring selection on a user's own model and data: `corebatch bench`."""

from corebatch.bench.gradients.estimate import Snapshot, measure
from corebatch.bench.gradients.measurement import Measurement
from corebatch.bench.gradients.methods import Method
from corebatch.bench.gradients.parsing import DEFAULT_METHODS, parse_method, parse_methods

__all__ = ["DEFAULT_METHODS", "Measurement", "Method", "Snapshot", "measure", "parse_method", "parse_methods"]
