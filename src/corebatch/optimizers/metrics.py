"""What the optimizers by name divide a gradient by: the metric that their steps are steepest in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from corebatch.errors import UnsupportedModelError

Metric: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, Any]], Tensor]


def _lamb(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """The trust ratio multiplies the step of a whole tensor: tensors are scaled otherwise to each other than Adam's."""
    moment: Tensor = state["exp_avg_sq"]
    return moment if group["adam"] else moment / state["trust_ratio"] ** 2


_METRICS: dict[str, Metric] = {
    "Adan": lambda state, group: state["exp_avg_sq"] / (1 - group["betas"][2] ** group["step"]),
    "ADOPT": lambda state, group: state["exp_avg_sq"],  # of the steps before: what the next one is divided by
    "Lamb": _lamb,
    "NovoGrad": lambda state, group: state["grads_ema"],  # one for a tensor
}
"""By the class of pytorch-optimizer: state and group of a weight -> the second moment, of the weight's shape or of one
number, up to a factor that all weights share."""

_NONE = {
    "LARS": "divides a tensor by its own gradient's norm, which it does not keep. Use normalise none",
    "Lion": "steps by a sign, which is no scale that rows could share. Use normalise none",
    "Muon": "steps by whole matrices. Use normalise 'muon'",
    "SOAP": "has its moments in the eigenbasis of each matrix, not in single weights. Use normalise none",
}


def metric_of(optimizer: Any) -> Metric | None:
    """What the moments of an optimizer of pytorch-optimizer mean; None for one that is of elsewhere.

    Raises:
        UnsupportedModelError: it has none for single weights, or it is not known.
    """
    kind = type(optimizer)
    if kind.__module__.split(".")[0] != "pytorch_optimizer":
        return None
    if kind.__name__ in _METRICS:
        return _METRICS[kind.__name__]
    why = _NONE.get(kind.__name__, f"is not one of {', '.join(_METRICS)}. Use normalise none")
    raise UnsupportedModelError(f"normalise 'optimizer' needs a second moment for every weight. {kind.__name__} {why}.")
