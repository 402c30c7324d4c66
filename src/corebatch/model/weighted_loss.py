"""The loss of the small batch with weights, through whatever wraps the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from corebatch.model.head import Positions, head_not_called, intercepted_head, logit_map
from corebatch.model.head_loss import weighted_token_loss
from corebatch.model.modes import forward_inputs
from corebatch.model.training_losses import spread


def weighted_loss(
    model: nn.Module,
    inner: nn.Module,
    inputs: Mapping[str, Tensor],
    weights: Tensor,
    watch: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, Any]:
    """sum_it weights_it loss_it, and the model's output with that loss in it.

    The forward is that of the wrapped model, so that DDP and FSDP see it, and the loss is an output of it: DDP looks
    for unused parameters by walking back from the outputs.

    Args:
        model: as the Trainer trains it, perhaps wrapped.
        inner: the same model without its wrappers.
        inputs: a micro-batch with `labels`.
        weights: [B], one for each row, or [B, T], one for each label; see `weighted_token_loss`.
        watch: is given the losses of the labels [B, T], without weights and gradients; 0 where none is trained.
    """
    transform = logit_map(inner)
    labels = inputs["labels"]

    def told(positions: Positions, losses: Tensor) -> None:
        if watch is not None:
            watch(spread(positions, losses))

    def take(head: nn.Module, hidden: Tensor) -> Tensor:
        return weighted_token_loss(head, hidden, labels, weights, transform, told)

    with intercepted_head(inner, take) as results:

        def attach(module: nn.Module, args: Any, output: Any) -> Any:
            if not results:
                raise head_not_called(inner)
            if isinstance(output, dict):
                output["loss"] = results[0]
                return output
            return (results[0], *output)

        # Before FSDP's own hook, which has to see the loss among the outputs to gather weights for its backward.
        handle = inner.register_forward_hook(attach, prepend=True)
        try:
            outputs = model(**forward_inputs(inputs))
        finally:
            handle.remove()
    return outputs["loss"] if isinstance(outputs, dict) else outputs[0], outputs
