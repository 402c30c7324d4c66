"""Exact per-example gradients of the last value projections, from activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from corebatch.errors import ConfigError
from corebatch.scoring._modes import forward_inputs, scoring_mode
from corebatch.scoring.base import Coordinates, LossUnit, Scorer, Scores, seeded, trained_tokens
from corebatch.scoring.head import Positions, intercepted_head, logit_map, token_losses
from corebatch.scoring.projections import ValueProjection, executed_value_projections


class LastLayer(Scorer):
    """Features [N, P]: for each example the gradient of its loss by the value projections of the last blocks.

    The forward runs without gradients. A hook on the first of the projections switches them on and lets its output
    start the graph; the loss is taken at the head, over label positions, and one backward through the last blocks
    gives delta_it = d loss / d output_it. The gradient of a linear map's weight is then sum_t delta_it (x) a_it with
    its inputs a_it: no weight is touched, and no weight's gradient is computed. The cost is a forward plus about
    twice the last blocks and the head on label positions.

    With LoRA the weight is its B; a projection that is not adapted counts as itself. A gradient of more than
    `max_dim` numbers is projected on both sides with Gaussian matrices, delta to `projection_dim` and a to
    `projection_dim` numbers (Johnson and Lindenstrauss: inner products are kept in expectation).

    Of the last `num_blocks` blocks, or of all if the model has fewer.

    The feature is CoLM's (arXiv 2407.19580, section 4.2: the last V projection), computed instead of estimated.
    """

    name = "last_layer"

    def __init__(self, *, num_blocks: int = 3, projection_dim: int = 64, max_dim: int = 16384) -> None:
        for option, value in (
            ("num_blocks", num_blocks),
            ("projection_dim", projection_dim),
            ("max_dim", max_dim),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"last_layer's {option} should be an integer of at least 1. Found {value!r}.")
        self.num_blocks = num_blocks
        self.projection_dim = projection_dim
        self.max_dim = max_dim
        self._traced: tuple[int, tuple[ValueProjection, ...]] | None = None
        self._sketches: dict[Any, Tensor] = {}

    def projections(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[ValueProjection, ...]:
        """The projections in use; traced once for a model."""
        if self._traced is None or self._traced[0] != id(model):
            self._traced = (id(model), executed_value_projections(model, batch, self.num_blocks))
        return self._traced[1]

    def coordinates(self) -> list[Coordinates] | None:
        if self._traced is None:
            return None
        found = []
        for projection in self._traced[1]:
            weight = projection.hooked.weight
            if not isinstance(weight, nn.Parameter) or weight.ndim != 2:
                return None
            transposed = hasattr(projection.hooked, "nf")  # Conv1D keeps its weight as [in, out]
            outputs, inputs = (weight.shape[1], weight.shape[0]) if transposed else weight.shape
            if projection.columns is not None:
                outputs = len(projection.columns)
            if outputs * inputs > self.max_dim:
                return None
            found.append(Coordinates(parameter=weight, rows=projection.columns, transposed=transposed))
        return found

    def _run(self, model: nn.Module, batch: Mapping[str, Tensor], loss: LossUnit, seed: int) -> Scores:
        projections = self.projections(model, batch)
        positions = Positions.of(batch["labels"])
        tokens = trained_tokens(batch["labels"])
        transform = logit_map(model)
        inputs: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {}

        def starts_graph(index: int) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
                if index == 0:
                    torch.set_grad_enabled(True)  # undone by scoring_mode's no_grad when the forward is over
                if not outputs:
                    output = output.detach().requires_grad_(True)
                inputs[index], outputs[index] = args[0].detach(), output
                return output

            return hook

        def take(head: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            losses, derivatives = token_losses(
                head, positions.take(hidden), positions.targets, transform, gradients=True
            )
            assert derivatives is not None
            if loss == "example_mean":
                derivatives /= tokens.clamp(min=1)[positions.rows].unsqueeze(1)
            return losses, positions.spread(derivatives, hidden), hidden

        handles = [p.hooked.register_forward_hook(starts_graph(i)) for i, p in enumerate(projections)]
        try:
            with scoring_mode(model), intercepted_head(model, take) as results:
                model(**forward_inputs(batch))
                losses, derivatives, hidden = results.pop()
                deltas = torch.autograd.grad(hidden, [outputs[i] for i in range(len(outputs))], derivatives)
        finally:
            for handle in handles:
                handle.remove()
        features = [
            self._outer(projection.values(delta), inputs[i], (seed, i))
            for i, (projection, delta) in enumerate(zip(projections, deltas, strict=True))
        ]
        return Scores(features=torch.cat(features, dim=1), losses=positions.sum_rows(losses), tokens=tokens)

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
