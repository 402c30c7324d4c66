"""The live optimizer's second moments, in the order of a scorer's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from corebatch.errors import UnsupportedModelError
from corebatch.optimizers.metrics import metric_of

KEY, TORCH_OWN = "exp_avg_sq", "_in_backward_optimizers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinates:
    """Where a block of feature columns comes from: the flattened rows `columns` of a parameter [out, in].

    A scorer gives these if each feature is the derivative by one weight, so that an optimizer's moments of that
    weight can scale it.
    """

    parameter: nn.Parameter
    rows: Tensor | None
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(O, R): the block's columns are a matrix [O, R], row by row, O outputs and R inputs of the weight."""
        whole = whole_shape(self.parameter)
        outputs, inputs = whole[::-1] if self.transposed else whole
        return (outputs if self.rows is None else len(self.rows), inputs)


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape as the layer uses it: DeepSpeed ZeRO-3 leaves an empty tensor between uses."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def second_moments(optimizer: Any, coordinates: Sequence[Coordinates] | None) -> Tensor | None:
    """Bias-corrected second moments [P] of the weights that the features are derivatives by; None before the
    optimizer's first step. Under DeepSpeed, which divides them, ranks put them together.

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
        parameter = coordinate.parameter
        if not parameter.requires_grad:
            raise UnsupportedModelError("normalise 'optimizer' needs value projections that are trained. Found frozen.")
        divided = hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")  # ZeRO-3, ZeRO-1 and 2
        moment = (_of_deepspeed if divided else _of_parameter)(optimizer, parameter)
        if moment is None:
            return None
        moment = moment.T if coordinate.transposed else moment
        if coordinate.rows is not None:
            moment = moment[coordinate.rows.to(moment.device)]
        parts.append(moment.flatten())
    return torch.cat(parts)


def _of_parameter(optimizer: Any, parameter: nn.Parameter) -> Tensor | None:
    """Corrected, of the weight's shape. An optimizer may say itself, by a method `second_moment_of(parameter)`."""
    own = part_of(optimizer, parameter)
    if hasattr(own, "second_moment_of"):
        found: Tensor | None = own.second_moment_of(parameter)
        return found
    metric = metric_of(own)
    groups = [group for group in own.param_groups if any(p is parameter for p in group["params"])]
    if not groups or "betas" not in groups[0] or "rank" in groups[0]:  # GaLore's moments are of rotated gradients
        raise _none_for_weights(own, groups)
    state = own.state.get(parameter)
    if not state:
        return None
    if metric is None and (KEY not in state or "step" not in state or state[KEY].shape != parameter.shape):
        raise _none_for_weights(own, groups)
    moment: Any = state[KEY].detach() if metric is None else metric(state, groups[0]).expand(parameter.shape)
    if hasattr(moment, "full_tensor"):  # sharded by FSDP2; every rank asks for the same ones in the same order
        moment = moment.full_tensor()
    return moment if metric is not None else moment / (1 - groups[0]["betas"][1] ** float(state["step"]))


def _of_deepspeed(optimizer: Any, parameter: nn.Parameter) -> Tensor | None:
    """The same where the optimizer holds a flat part of all weights on each rank; every rank calls it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    own = plain(optimizer)
    betas = {group.get("betas") for group in own.param_groups}
    if len(betas) != 1 or None in betas:  # which group a weight has gone to is not known
        raise _none_for_weights(own, own.param_groups)
    state = next(iter(own.state.values()), None)
    if not state:
        return None
    if KEY not in state or "step" not in state:
        raise _none_for_weights(own, own.param_groups)
    moment: Tensor = safe_get_full_optimizer_state(parameter, KEY)
    return moment.detach() / (1 - betas.pop()[1] ** float(state["step"]))


def _none_for_weights(optimizer: Any, groups: list[dict[str, Any]]) -> UnsupportedModelError:
    found = "which does not hold the value projections"
    if groups:
        found = f"whose settings are {', '.join(key for key in groups[0] if key != 'params')}"
    return UnsupportedModelError(
        f"normalise 'optimizer' needs an optimizer with a second moment for every weight, such as AdamW. Found "
        f"{type(optimizer).__name__}, {found}. Use normalise none."
    )


def plain(optimizer: Any) -> Any:
    """The optimizer below Accelerate's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def part_of(optimizer: Any, parameter: nn.Parameter) -> Any:
    """The optimizer that has the state of `parameter`: the one given, or its part for that weight."""
    optimizer = plain(optimizer)
    parts = getattr(optimizer, "optimizer_dict", None)
    if isinstance(parts, dict):
        return parts.get(parameter, optimizer)
    own = getattr(parameter, TORCH_OWN, None)
    return own[0] if own else optimizer
