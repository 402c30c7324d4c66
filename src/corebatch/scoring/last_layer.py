"""Exact per-example gradients of the last value projections, from activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from corebatch.model.moments import Coordinates, whole_shape
from corebatch.options import check_count
from corebatch.scoring.value_gradients import NumBlocks, ValueGradients, ValueGradientScorer
from corebatch.seeds import seeded


class LastLayer(ValueGradientScorer):
    """Features [N, P]: for each example the gradient of its loss by the value projections of the last blocks.

    The forward runs without gradients. A hook on the first of the projections switches them on and lets its output
    start the graph; the loss is taken at the head, over label positions, and one backward through the last blocks
    gives delta_it = d loss / d output_it. The gradient of a linear map's weight is then sum_t delta_it (x) a_it with
    its inputs a_it: no weight is touched, and no weight's gradient is computed. The cost is a forward plus about
    twice the last blocks and the head on label positions.

    With LoRA the weight is its B; a projection that is not adapted counts as itself. A gradient of more than
    `max_dim` numbers is projected on both sides with Gaussian matrices, delta to `projection_dim` and a to
    `projection_dim` numbers (Johnson and Lindenstrauss: inner products are kept in expectation).

    Of the last `num_blocks` blocks, or of all if the model has fewer; "auto" is one for every eight blocks of the
    model, from one to three.

    The feature is CoLM's (arXiv 2407.19580: the last V projection), computed instead of estimated.
    """

    name = "last_layer"

    def __init__(self, *, num_blocks: NumBlocks = "auto", projection_dim: int = 64, max_dim: int = 16384) -> None:
        super().__init__(num_blocks=num_blocks)
        for option, value in (("projection_dim", projection_dim), ("max_dim", max_dim)):
            check_count(f"last_layer's {option}", value)
        self.projection_dim = projection_dim
        self.max_dim = max_dim
        self._sketches: dict[Any, Tensor] = {}

    def coordinates(self) -> list[Coordinates] | None:
        if self._traced is None:
            return None
        found = []
        for projection in self._traced[1]:
            weight = projection.hooked.weight
            if not isinstance(weight, nn.Parameter) or hasattr(weight, "quant_state"):
                return None  # four-bit weights lie packed in bytes, and are not trained
            if len(shape := whole_shape(weight)) != 2:
                return None
            transposed = hasattr(projection.hooked, "nf")  # Conv1D keeps its weight as [in, out]
            outputs, inputs = shape[::-1] if transposed else shape
            if projection.columns is not None:
                outputs = len(projection.columns)
            if outputs * inputs > self.max_dim:
                return None
            found.append(Coordinates(parameter=weight, rows=projection.columns, transposed=transposed))
        return found

    def features(self, gradients: ValueGradients, seed: int) -> Tensor:
        pairs = zip(gradients.deltas, gradients.inputs, strict=True)
        return torch.cat([self._outer(delta, a, (seed, i)) for i, (delta, a) in enumerate(pairs)], dim=1)

    def _outer(self, delta: Tensor, activation: Tensor, key: tuple[int, int]) -> Tensor:
        """sum_t delta_t (x) a_t for each row: [B, T, O], [B, T, R] -> [B, O' R'], sketched if O R is large."""
        dtype = torch.float64 if delta.dtype == torch.float64 else torch.float32
        delta, activation = delta.to(dtype), activation.to(dtype)
        if delta.shape[-1] * activation.shape[-1] > self.max_dim:
            delta = self._sketch(delta, (*key, "output"))
            activation = self._sketch(activation, (*key, "input"))
        return torch.einsum("bto,btr->bor", delta, activation).flatten(1)

    def _sketch(self, values: Tensor, key: tuple[Any, ...]) -> Tensor:
        width, dim = values.shape[-1], self.projection_dim
        if width <= dim:
            return values
        full_key = (*key, width, values.dtype, values.device)
        if full_key not in self._sketches:
            matrix = torch.randn(width, dim, generator=seeded(key[0], "sketch", *key[1:]), dtype=torch.float64)
            self._sketches[full_key] = (matrix / dim**0.5).to(values.dtype).to(values.device)
        return values @ self._sketches[full_key]
