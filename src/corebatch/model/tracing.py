"""One short forward, for hooks to see what a model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from corebatch.model.head import intercepted_head
from corebatch.model.modes import forward_inputs, scoring_mode

TRACE_TOKENS = 8


def trace(model: nn.Module, batch: Mapping[str, Tensor], hooks: Sequence[RemovableHandle]) -> None:
    """Run one row of at most TRACE_TOKENS tokens, without logits or gradients; the hooks are removed afterwards."""
    try:
        with scoring_mode(model), intercepted_head(model, lambda head, hidden: None):
            model(**short_row(batch), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()


def short_row(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the first row that the forward is called with, at most TRACE_TOKENS tokens of them."""
    tensors = {key: value for key, value in forward_inputs(batch).items() if isinstance(value, Tensor)}
    row = {key: value[:1, :TRACE_TOKENS] if value.ndim > 1 else value[:1] for key, value in tensors.items()}
    if "attention_mask" in row:  # a row that is padded on the left would be all padding
        row["attention_mask"] = torch.ones_like(row["attention_mask"])
    return row
