"""corebatch: the update of a large batch from a small one, at every optimizer step, in the trainer you use.

One step:

1. the rows of a large batch are split by source, and small sources may be kept whole;
2. a scorer gives every row features, for instance its gradient by the last value projections;
3. features are normalised as the optimizer will;
4. and sparsified;
5. a selector chooses the small batch, with weights that keep its mean gradient honest;
6. the trainer takes an ordinary step on it.

`corebatch.trainer` has the trainers, `corebatch.scoring` and `corebatch.selectors` the methods by name.
"""

from corebatch.errors import CorebatchError
from corebatch.step import select
from corebatch.types import Selection, SourceGroup

__version__ = "0.1.0.dev0"

__all__ = ["CorebatchError", "Selection", "SourceGroup", "__version__", "select"]
