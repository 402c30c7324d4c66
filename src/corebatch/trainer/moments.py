"""The live optimizer's second moments, in the order of a scorer's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import UnsupportedModelError
from corebatch.scoring import Coordinates
from corebatch.trainer.in_backward import part_of


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
    parts = []
    for coordinate in coordinates:
        if not coordinate.parameter.requires_grad:
            raise UnsupportedModelError("normalise 'optimizer' needs value projections that are trained. Found frozen.")
        own = part_of(optimizer, coordinate.parameter)
        groups = [group for group in own.param_groups if any(p is coordinate.parameter for p in group["params"])]
        if not groups or "betas" not in groups[0] or "rank" in groups[0]:  # GaLore's moments are of rotated gradients
            raise _none_for_weights(own, groups)
        state = own.state.get(coordinate.parameter)
        if not state:
            return None
        if "exp_avg_sq" not in state or state["exp_avg_sq"].shape != coordinate.parameter.shape:
            raise _none_for_weights(own, groups)
        moment = state["exp_avg_sq"].detach()
        moment = moment.T if coordinate.transposed else moment
        if coordinate.rows is not None:
            moment = moment[coordinate.rows.to(moment.device)]
        steps = float(state["step"])
        parts.append(moment.flatten() / (1 - groups[0]["betas"][1] ** steps))
    return torch.cat(parts)


def _none_for_weights(optimizer: Any, groups: list[dict[str, Any]]) -> UnsupportedModelError:
    found = "which does not hold the value projections"
    if groups:
        found = f"whose settings are {', '.join(key for key in groups[0] if key != 'params')}"
    return UnsupportedModelError(
        f"normalise 'optimizer' needs an optimizer with a second moment for every weight, such as AdamW. Found "
        f"{type(optimizer).__name__}, {found}. Use normalise none."
    )
