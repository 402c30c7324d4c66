"""The head of a model: where it is, what follows it, and forwards in which it sees label positions only.

The model's own forward runs as it is, inside whatever wraps it (DDP, FSDP, autocast). A hook on the head takes the
hidden states, and hands the head a single position, so that it builds next to nothing: never [B, T, V] logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from corebatch.errors import UnsupportedModelError
from corebatch.model.modes import base_model
from corebatch.types import IGNORED


@dataclass(frozen=True, slots=True)
class Positions:
    """The label positions of a batch, L in number, in row-major order.

    Attributes:
        mask: BoolTensor [B, T - 1]: the position predicts a trained token.
        rows: LongTensor [L]: the row of each.
        targets: LongTensor [L]: the token to be predicted.
    """

    mask: Tensor
    rows: Tensor
    targets: Tensor

    @staticmethod
    def of(labels: Tensor) -> Positions:
        shifted = labels[:, 1:]
        mask = shifted != IGNORED
        return Positions(mask, mask.nonzero()[:, 0], shifted[mask])

    def take(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> [L, D]."""
        if hidden.shape[1] != self.mask.shape[1] + 1 or hidden.shape[0] != self.mask.shape[0]:
            raise UnsupportedModelError(
                f"The head should be called with hidden states of all {tuple(self.mask.shape)} + 1 positions. "
                f"Found {tuple(hidden.shape)}: prompt learning and `logits_to_keep` do not go with scoring."
            )
        return hidden[:, :-1][self.mask]

    def spread(self, values: Tensor, like: Tensor) -> Tensor:
        """[L, D] -> [B, T, D], zero elsewhere."""
        full = torch.zeros_like(like)
        full[:, :-1][self.mask] = values.to(full.dtype)
        return full

    def sum_rows(self, values: Tensor) -> Tensor:
        """[L] -> [B]: sums over the positions of each row, in double precision where that is free of charge."""
        return torch.zeros(len(self.mask), dtype=values.dtype, device=values.device).index_add_(0, self.rows, values)


def output_head(model: nn.Module) -> nn.Module:
    """The module that maps hidden states to logits.

    Raises:
        UnsupportedModelError: the model has none.
    """
    head = find_head(model)
    if head is None:
        raise UnsupportedModelError(
            "corebatch trains causal language models with an output head. "
            f"{type(base_model(model)).__name__} has none (get_output_embeddings() gave nothing)."
        )
    return head


def find_head(model: nn.Module) -> nn.Module | None:
    """The module that maps hidden states to logits; None if the model has none."""
    base = base_model(model)
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    return head if isinstance(head, nn.Module) else None


def logit_map(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """What the model does to the head's output before the loss, read from its configuration: soft caps (Gemma 2 and
    3) and scales (Granite, Cohere). Anything else shows as a loss that differs from the model's own."""
    base = base_model(model)
    config = base.config.get_text_config() if hasattr(base, "config") else None
    cap = getattr(config, "final_logit_softcapping", None)
    divisor = getattr(config, "logits_scaling", None)
    scale = getattr(config, "logit_scale", None)

    def transform(logits: Tensor) -> Tensor:
        if divisor:
            logits = logits / divisor
        if isinstance(scale, int | float):
            logits = logits * scale
        if cap:
            logits = torch.tanh(logits / cap) * cap
        return logits if logits.dtype == torch.float64 else logits.float()

    return transform


@contextmanager
def intercepted_head(model: nn.Module, take: Callable[[nn.Module, Tensor], Any]) -> Iterator[list[Any]]:
    """While open, each forward of `model` calls `take(head, hidden)` in place of building the logits.

    Yields:
        A list that receives what `take` returned, one entry for each forward.

    Raises:
        UnsupportedModelError: at the end, no forward has called the head.
    """
    results: list[Any] = []
    inside = called = False

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal inside, called
        if inside:  # `take` itself calls the head, on chunks
            return None
        inside = called = True
        try:
            results.append(take(module, args[0]))
        finally:
            inside = False
        return (args[0][:, :1].detach(), *args[1:])

    handle = output_head(model).register_forward_pre_hook(hook)
    try:
        yield results
        if not called:
            raise head_not_called(model)
    finally:
        handle.remove()


def logits_at(model: nn.Module, head: nn.Module, inputs: dict[str, Tensor], wanted_NT: Tensor) -> Tensor:
    """The model's own logits [L, V] at the wanted positions: the head is given those hidden states alone.

    Whatever the model does to logits (scaling, soft caps) is kept, since its forward goes on from the head.
    """

    def keep_wanted(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_NTH = args[0]
        if hidden_NTH.dim() != 3 or hidden_NTH.shape[1] != wanted_NT.shape[1] + 1:
            shape = tuple(hidden_NTH.shape)
            raise UnsupportedModelError(f"The output head should see all positions [N, T, H]. Found {shape}.")
        return (hidden_NTH[:, :-1][wanted_NT].unsqueeze(0), *args[1:])

    hook = head.register_forward_pre_hook(keep_wanted)
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return logits[0]


def head_not_called(model: nn.Module) -> UnsupportedModelError:
    """For a forward that computes its logits or its loss without its head's forward."""
    return UnsupportedModelError(
        f"A forward of {type(base_model(model)).__name__} without labels should call its output head, where corebatch "
        "computes the loss. It did not: a fused loss is in the way. With Liger set liger_kernel_config: "
        "{fused_linear_cross_entropy: false}."
    )
