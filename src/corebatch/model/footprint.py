"""How much memory a training step will take, counted on a model without weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from corebatch.optimizers import kept_numbers


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that one rank needs for a step.

    Attributes:
        weights: of the model.
        gradients: of what is trained.
        optimizer: what it keeps, in float32: two moments for each trained number, as AdamW, or what one by name keeps.
        activations: what the forward of one micro-batch keeps for the backward, of the longest rows; None if it could
            not be counted.
        scored_rows: rows of one scoring forward. It keeps little: no logits, and only the last blocks' activations.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int | None
    scored_rows: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + (self.activations or 0)


FOUR_BIT_BYTES = 0.5 + 4 / 64
"""Of a number in four bits: half a byte, and a scale in float32 for every 64 (QLoRA, arXiv 2305.14314)."""


def predict(
    model: Any,
    *,
    rows: int,
    tokens: int,
    pool_factor: int,
    checkpointing: bool,
    four_bits: bool = False,
    optim: str = "",
) -> Memory:
    """Counts weights and runs one forward on the meta device, which computes nothing, to see what it keeps.

    Args:
        model: on the meta device, with adapters if there are any.
        rows: of a micro-batch.
        tokens: of its longest row.
        pool_factor: how many times more rows are scored at a time.
        checkpointing: whether activations are recomputed.
        four_bits: whether frozen linear maps but the head are kept in four bits, and all other weights in float32.
        optim: the optimizer's name.
    """
    weights = int(sum(_weight_bytes(model, four_bits)))
    trained = [p for p in model.parameters() if p.requires_grad]
    return Memory(
        weights=weights,
        gradients=sum(p.numel() * p.element_size() for p in trained),
        optimizer=4 * kept_numbers(optim, model),
        activations=saved_bytes(model, rows, tokens, checkpointing),
        scored_rows=rows * pool_factor,
    )


def _weight_bytes(model: Any, four_bits: bool) -> Iterator[float]:
    head = model.get_output_embeddings()
    packed = {
        id(module.weight)
        for module in model.modules()
        if four_bits and isinstance(module, nn.Linear) and module is not head and not module.weight.requires_grad
    }
    for parameter in model.parameters():
        size = 4 if four_bits else parameter.element_size()
        yield parameter.numel() * (FOUR_BIT_BYTES if id(parameter) in packed else size)


def saved_bytes(model: Any, rows: int, tokens: int, checkpointing: bool) -> int | None:
    """Bytes of tensors that autograd keeps after a forward with labels, weights not counted; None if the model does
    not run on the meta device."""
    owned = {id(p) for p in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if id(tensor) not in owned and (tensor._base is None or id(tensor._base) not in owned):
            seen[id(tensor._base if tensor._base is not None else tensor)] = tensor.numel() * tensor.element_size()
            keep.append(tensor)  # an id is unique only while its tensor lives
        return tensor

    keep: list[Tensor] = []
    model.train()
    if checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        if hasattr(model, "enable_input_require_grads"):
            model.enable_input_require_grads()
    ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return None
    return sum(seen.values())
