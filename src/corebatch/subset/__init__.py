"""Once: which rows of a data set are kept for all of training, and with what weights.

A new method is one file with a subclass of `SubsetMethod`, and one line in `SUBSETS` Methods are arithmetic on arrays:
models, data sets and files are `corebatch.launch.subset`'s.
"""

from __future__ import annotations

from corebatch.subset.base import Subset, SubsetMethod, SubsetProblem
from corebatch.subset.keeping import keep_rows
from corebatch.subset.matrix import Matrix
from corebatch.subset.methods import SUBSETS, make_subset

__all__ = ["SUBSETS", "Matrix", "Subset", "SubsetMethod", "SubsetProblem", "keep_rows", "make_subset"]
