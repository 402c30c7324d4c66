"""A block that is not run forward: its output is known, and the backward pass recomputes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from corebatch.errors import UnsupportedModelError


class Recompute:
    """A block's forward with gradients, in the autocast of the training forward."""

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        parameters: Sequence[nn.Parameter],
        device: torch.device,
        index: int,
        inspected: set[int],
    ) -> None:
        self._run = run
        self.parameters = parameters
        self._index = index
        self._inspected = inspected
        kinds = {device.type, "cpu"}
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), torch.is_autocast_cache_enabled())
            for kind in sorted(kinds)
        ]

    def __call__(self, hidden: Tensor) -> Tensor:
        with ExitStack() as modes:
            modes.enter_context(torch.enable_grad())
            for kind, dtype, enabled, cache in self._autocast:
                modes.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=cache))
            output = self._run(hidden)
        if self._index not in self._inspected:
            self._inspect(output, hidden)
            self._inspected.add(self._index)
        return output

    def _inspect(self, output: Tensor, hidden: Tensor) -> None:
        """Gradients are taken by the block's own parameters: any other would silently get none."""
        known = {id(hidden), *map(id, self.parameters)}
        stack, seen = [output.grad_fn], set()
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) not in known:
                raise UnsupportedModelError(
                    f"Block {self._index} uses a trained tensor of shape {list(leaf.shape)} that is not its own: the "
                    "scoring forward of this model cannot be reused."
                )
            stack.extend(following for following, _ in node.next_functions)


class Recalled(torch.autograd.Function):
    """A block whose output is known: nothing is computed forward, and backward recomputes it from its input.

    The block's parameters are inputs, not leaves of a nested backward as in reentrant checkpointing: the engine
    accumulates their gradients itself, so that hooks on them and DDP's search for unused parameters work as usual.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, gather: Callable[[], Tensor], recompute: Recompute, *parameters: Tensor
    ) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.recompute = recompute
        return gather()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,) = ctx.saved_tensors
        recompute, through = ctx.recompute, ctx.needs_input_grad[0]
        hidden = hidden.detach().requires_grad_(through)
        output = recompute(hidden)
        wanted = [*([hidden] if through else []), *recompute.parameters]
        if not output.requires_grad:
            return (None,) * (3 + len(recompute.parameters))
        grads = torch.autograd.grad(output, wanted, grad.to(output.dtype), allow_unused=True)
        return (grads[0] if through else None, None, None, *grads[through:])
