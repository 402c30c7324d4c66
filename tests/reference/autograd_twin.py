"""The slow, obvious twin of `last_layer`: a loop over examples, autograd, the loss by hand from full logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def full_token_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy [B, T - 1] from the model's own logits in their own precision, zero where nothing is trained."""
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    picked = logits.log_softmax(dim=-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(labels == -100, 0.0, -picked)


def per_example_gradients(
    model: nn.Module, batch: dict[str, Tensor], parameters: list[Any], unit: str = "token_mean"
) -> list[Tensor]:
    """For each parameter [N, *shape]: the gradient of each example's summed (or mean) token loss."""
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        losses = full_token_losses(model, batch).sum(dim=1)
        if unit == "example_mean":
            losses = losses / (batch["labels"][:, 1:] != -100).sum(dim=1).clamp(min=1)
        rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
    return [torch.stack(gradients).detach() for gradients in zip(*rows, strict=True)]
