"""Running a model for its scores without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Keys of a batch that are not inputs of the model's forward here: labels would make it build all logits.
NOT_FORWARDED = frozenset(
    {"labels", "loss_weights", "num_items_in_batch", "corebatch_id", "corebatch_source", "corebatch_places"}
)


@contextmanager
def scoring_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode that it was in.

    The flags are set one by one: `model.train()` would switch on modules that a user had frozen in evaluation mode.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def forward_inputs(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """The batch as keyword arguments of the model's forward, without what would build logits or a cache."""
    return {**{k: v for k, v in batch.items() if k not in NOT_FORWARDED}, "use_cache": False}


def base_model(model: Any) -> Any:
    """The transformers model below an adapter wrapper of peft."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
