"""corebatch: the update of a large batch from a small one, at every optimizer step, in the trainer you use.

One step:

1. the rows of a large batch are split by source, and small sources are kept whole, if asked for;
2. a scorer gives every row features, for instance its gradient by the last value projections;
3. features are normalised as the optimizer will;
4. and sparsified;
5. a selector chooses the small batch, with weights that keep its mean gradient honest;
6. the trainer takes an ordinary step on it.

`corebatch.trainer` has the trainers, `corebatch.scoring` and `corebatch.selectors` the methods by name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from corebatch.errors import CorebatchError

if TYPE_CHECKING:
    from corebatch.batch.method import select
    from corebatch.types import Selection, SourceGroup

__version__ = "0.1.0"

__all__ = ["CorebatchError", "Selection", "SourceGroup", "__version__", "select"]

_WHERE = {"select": "corebatch.batch.method", "Selection": "corebatch.types", "SourceGroup": "corebatch.types"}


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for, so that the command line answers at once."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
