"""The derivatives of every example's loss by the outputs of the last value projections, from one forward.

Shape suffixes: B rows of one forward, T tokens, O outputs and R inputs of a projection.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from corebatch.model.head import Positions, head_not_called, intercepted_head, logit_map
from corebatch.model.head_loss import token_losses
from corebatch.model.modes import forward_inputs, scoring_mode
from corebatch.model.projections import ValueProjection, check_executed, executed_value_projections
from corebatch.model.rows import trained_tokens
from corebatch.options import check_count
from corebatch.scoring.base import LossUnit, Scorer, Scores

NumBlocks = int | Literal["auto"]

MOST_BLOCKS, BLOCKS_FOR_ONE = 3, 8
"""What "auto" takes: at most so many blocks, and one for so many of the model's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueGradients:
    """What one forward and a backward through the last blocks give; row i's gradient by the weight of a projection is
    sum_t delta_it (x) a_it.

    Attributes:
        deltas: for each projection d loss / d output [B, T, O], the columns that are values only.
        inputs: for each projection its inputs a [B, T, R].
        losses: [B], each example's sum of token losses.
        tokens: LongTensor [B]: how many tokens are trained.
    """

    deltas: Sequence[Tensor]
    inputs: Sequence[Tensor]
    losses: Tensor
    tokens: Tensor


class ValueGradientScorer(Scorer):
    """A scorer whose features come from the `ValueGradients` of the last `num_blocks` blocks (all, if the model has
    fewer). "auto" is one for every eight blocks of the model, from one to three: what it costs is a share of the
    forward, and more than three add nothing (docs/evidence/measurements.md)."""

    def __init__(self, *, num_blocks: NumBlocks) -> None:
        if num_blocks != "auto":
            check_count(f"{self.name}'s num_blocks", num_blocks, more=", or auto")
        self.num_blocks = num_blocks
        self._traced: tuple[weakref.ref[nn.Module], tuple[ValueProjection, ...]] | None = None

    def projections(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[ValueProjection, ...]:
        """The projections in use; traced once for a model."""
        if self._traced is None or self._traced[0]() is not model:
            found = executed_value_projections(model, batch, 2**31 if self.num_blocks == "auto" else self.num_blocks)
            self._traced = (weakref.ref(model), found[-self.count(len(found)) :])
        return self._traced[1]

    def count(self, blocks: int) -> int:
        """How many of a model's `blocks` are used."""
        if self.num_blocks == "auto":
            return max(1, min(MOST_BLOCKS, blocks // BLOCKS_FOR_ONE))
        return min(self.num_blocks, blocks)

    def _run(self, model: nn.Module, batch: Mapping[str, Tensor], loss: LossUnit, seed: int) -> Scores:
        found = value_gradients(model, batch, self.projections(model, batch), loss)
        with torch.autocast(found.losses.device.type, enabled=False):  # products of features stay in float32
            features = self.features(found, seed)
        return Scores(features=features, losses=found.losses, tokens=found.tokens)

    @abstractmethod
    def features(self, gradients: ValueGradients, seed: int) -> Tensor:
        """[B, P]."""


def value_gradients(
    model: nn.Module, batch: Mapping[str, Tensor], projections: Sequence[ValueProjection], loss: LossUnit
) -> ValueGradients:
    """Runs the forward without gradients up to the first of `projections`.

    A hook there switches gradients on and lets its output start the graph; the loss is taken at the head, over label
    positions, and one backward through the last blocks gives the derivatives. No weight is touched, and no weight's
    gradient is computed.
    """
    positions = Positions.of(batch["labels"])
    tokens = trained_tokens(batch["labels"])
    transform = logit_map(model)
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}

    def starts_graph(index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            if index == 0:
                torch.set_grad_enabled(True)  # undone by scoring_mode's no_grad when the forward is over
            if not output.requires_grad:  # also at a second call: DoRA first multiplies B with a unit matrix
                output = output.detach().requires_grad_(True)
            inputs[index], outputs[index] = args[0].detach(), output
            return output

        return hook

    def take(head: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        losses, derivatives = token_losses(head, positions.take(hidden), positions.targets, transform, gradients=True)
        assert derivatives is not None
        if loss == "example_mean":
            derivatives /= tokens.clamp(min=1)[positions.rows].unsqueeze(1)
        return losses, positions.spread(derivatives, hidden), hidden

    handles = [p.hooked.register_forward_hook(starts_graph(i)) for i, p in enumerate(projections)]
    try:
        with (
            scoring_mode(model),
            without_weight_gradients(p.block for p in projections),
            intercepted_head(model, take) as results,
        ):
            model(**forward_inputs(batch))
            check_executed(len(outputs), len(projections))
            if not results:
                raise head_not_called(model)
            losses, derivatives, hidden = results.pop()
            deltas = torch.autograd.grad(hidden, [outputs[i] for i in range(len(outputs))], derivatives)
    finally:
        for handle in handles:
            handle.remove()
    return ValueGradients(
        deltas=[projection.values(delta) for projection, delta in zip(projections, deltas, strict=True)],
        inputs=[inputs[i] for i in range(len(inputs))],
        losses=positions.sum_rows(losses),
        tokens=tokens,
    )


@contextmanager
def without_weight_gradients(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """While open, weights of `blocks` ask for no gradient, so that a linear map does not keep its input for one.

    The flag alone is changed, and put back. Weights of a sharding engine (DTensor, DeepSpeed) are left as they are: it
    may look at the flag when it gathers them.
    """
    asking = [
        parameter
        for block in blocks
        for parameter in block.parameters()
        if parameter.requires_grad and not hasattr(parameter, "device_mesh") and not hasattr(parameter, "ds_id")
    ]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
