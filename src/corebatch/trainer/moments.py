"""The live optimizer's second moments, in the order of a scorer's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import UnsupportedModelError
from corebatch.scoring import Coordinates


def second_moments(optimizer: Any, coordinates: Sequence[Coordinates] | None) -> Tensor | None:
    """Bias-corrected second moments [P] of the weights that the features are derivatives by; None before the
    optimizer's first step.

    Raises:
        UnsupportedModelError: the features are no derivatives by single weights, a weight is not trained, or the
            optimizer keeps no second moments.
    """
    if coordinates is None:
        raise UnsupportedModelError(
            "normalise 'optimizer' needs features that are derivatives by single weights: scorer 'last_layer' on LoRA "
            "or on projections below its max_dim. Found features that are not. Use normalise none."
        )
    while hasattr(optimizer, "optimizer"):  # Accelerate's wrapper
        optimizer = optimizer.optimizer
    parts = []
    beta2 = {id(p): group.get("betas", (0, 0))[1] for group in optimizer.param_groups for p in group["params"]}
    for coordinate in coordinates:
        if id(coordinate.parameter) not in beta2:
            raise UnsupportedModelError("normalise 'optimizer' needs value projections that are trained. Found frozen.")
        state = optimizer.state.get(coordinate.parameter)
        if not state:
            return None
        if "exp_avg_sq" not in state or state["exp_avg_sq"].shape != coordinate.parameter.shape:
            raise UnsupportedModelError(
                f"normalise 'optimizer' needs an optimizer with a second moment for every weight, such as AdamW. "
                f"Found {type(optimizer).__name__} with {', '.join(map(str, state))}."
            )
        moment = state["exp_avg_sq"].detach()
        if hasattr(moment, "full_tensor"):  # sharded by FSDP2; every rank asks for the same ones in the same order
            moment = moment.full_tensor()
        moment = moment.T if coordinate.transposed else moment
        if coordinate.rows is not None:
            moment = moment[coordinate.rows.to(moment.device)]
        steps = float(state["step"])
        parts.append(moment.flatten() / (1 - beta2[id(coordinate.parameter)] ** steps))
    return torch.cat(parts)
