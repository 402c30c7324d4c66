"""A forward through the first blocks alone: the others let the hidden states pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from corebatch.errors import ConfigError, UnsupportedModelError
from corebatch.model.projections import executed_value_projections
from corebatch.model.tracing import trace


class EarlyExit:
    """Runs a model as if it ended after its first `count` blocks, with its own final norm and head.

    The blocks behind are stepped over while `cut` is open: their `forward` is replaced on the instance by one that
    returns its hidden states, in the form that the block returns them. No weight is touched. What the early exit
    computes is another loss than the model's, so its features are a proxy (nostalgebraist's "logit lens"; early exit as
    in arXiv 2404.16710): they may steer inclusion, not estimate gradients.

    Args:
        count: how many blocks run, at least 1.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._found: tuple[int, list[tuple[nn.Module, Callable[[Tensor], Any]]]] | None = None

    @contextmanager
    def cut(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Iterator[None]:
        """While open, forwards of `model` run its first blocks alone.

        Raises:
            ConfigError: the model has no more blocks than `count`.
            UnsupportedModelError: its blocks are not known (no value projection in them), or return something else
                than hidden states first.
        """
        if self._found is None or self._found[0] != id(model):
            self._found = (id(model), self._trace(model, batch))
        stepped_over = self._found[1]
        try:
            for block, passes in stepped_over:
                block.forward = passes
            yield
        finally:
            for block, _ in stepped_over:
                block.__dict__.pop("forward", None)

    def _trace(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[tuple[nn.Module, Callable[..., Any]]]:
        projections = executed_value_projections(model, batch, 2**31)
        blocks = list(dict.fromkeys(projection.block for projection in projections))
        if len(blocks) <= self.count:
            raise ConfigError(
                f"scoring.blocks should be below the number of blocks of the model, {len(blocks)}. Found {self.count}."
            )
        taken = [block for block in blocks if "forward" in block.__dict__]
        if taken:
            raise UnsupportedModelError(
                f"scoring 'first_blocks' replaces the forward of whole blocks. Found {type(taken[0]).__name__} whose "
                "forward somebody else has replaced."
            )
        shapes: dict[nn.Module, int | None] = {}

        def note(block: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if not isinstance(first, Tensor):
                raise UnsupportedModelError(
                    f"scoring 'first_blocks' needs blocks that return hidden states. Found {type(output).__name__} "
                    f"from {type(block).__name__}."
                )
            shapes[block] = len(output) if isinstance(output, tuple) else None

        trace(model, batch, [block.register_forward_hook(note) for block in blocks])
        return [(block, _passes(shapes[block])) for block in blocks[self.count :]]


def _passes(width: int | None) -> Callable[..., Any]:
    """A forward that returns its hidden states: alone, or as the first of `width` items."""

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden_states if width is None else (hidden_states, *[None] * (width - 1))

    return forward
