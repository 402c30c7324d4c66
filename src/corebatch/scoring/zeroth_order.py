"""The paper's feature: simultaneous perturbation of the last value projection, kept as factors."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from corebatch.errors import ConfigError, UnsupportedModelError
from corebatch.model.head import Positions
from corebatch.model.head_loss import forward_losses
from corebatch.model.modes import base_model
from corebatch.model.projections import ValueProjection, check_executed, executed_value_projections
from corebatch.model.rows import trained_tokens
from corebatch.options import check_count
from corebatch.scoring.base import LossUnit, Scorer, Scores
from corebatch.seeds import seeded


class ZerothOrder(Scorer):
    """Features [N, num_directions]: p_ik = [L_i(w + epsilon z_k) - L_i(w - epsilon z_k)] / (2 epsilon).

    SPSA as in MeZO, used by CoLM (arXiv 2407.19580; CoLM's epsilon is 1e-3). The paper's "gradient" of
    example i is p_i z with one z for all examples and steps, that is one number an example: the factor p is kept and
    z is not multiplied out. Distances between rows p_i z are |p_i - p_j| times a constant, and Adam's map of p_i z is
    sign(z) times Adam's map of p_i, so later stages work on the factor alone.

    Only the last block and the head run twice: at that block's entry the rows are doubled, one half sees the value
    projection's output moved by +epsilon a z^T and the other by -epsilon a z^T. No weight is perturbed. From there on
    everything is in float32 (float64 for a float64 model), whatever the autocast type: the difference of two nearly
    equal losses has no digits left in bfloat16.
    """

    name = "zeroth_order"

    def __init__(self, *, num_directions: int = 1, epsilon: float = 1e-3) -> None:
        check_count("zeroth_order's num_directions", num_directions)
        if not isinstance(epsilon, int | float) or not 0 < epsilon < math.inf:
            raise ConfigError(f"zeroth_order's epsilon should be a number above 0. Found {epsilon!r}.")
        self.num_directions = num_directions
        self.epsilon = float(epsilon)
        self._traced: tuple[weakref.ref[nn.Module], ValueProjection] | None = None
        self._directions: dict[Any, Tensor] = {}

    def projection(self, model: nn.Module, batch: Mapping[str, Tensor]) -> ValueProjection:
        """The last value projection executed; traced once for a model."""
        if self._traced is None or self._traced[0]() is not model:
            if getattr(base_model(model).config, "model_type", "") in _FIXED_BATCH:
                raise UnsupportedModelError(
                    f"zeroth_order doubles the rows at the last block. {type(base_model(model)).__name__} restores "
                    "the number of rows itself after it. Use scorer 'last_layer'."
                )
            found = executed_value_projections(model, batch, 1)[0]
            low = sorted({str(p.dtype) for p in found.block.parameters() if p.dtype not in _EXACT})
            if low:
                raise UnsupportedModelError(
                    f"zeroth_order needs the last block in float32 (bfloat16 training by autocast is fine). "
                    f"Found {', '.join(low)}. Load the model with dtype float32 and not quantised, or use scorer "
                    "'last_layer'."
                )
            self._traced = (weakref.ref(model), found)
        return self._traced[1]

    def direction(self, outputs: int, inputs: int, k: int, seed: int, like: Tensor) -> Tensor:
        """z_k [outputs, inputs], standard normal, the same at every step of a run."""
        key = (outputs, inputs, k, seed, like.dtype, like.device)
        if key not in self._directions:
            z = torch.randn(outputs, inputs, generator=seeded(seed, "direction", k), dtype=torch.float64)
            self._directions[key] = z.to(like.dtype).to(like.device)
        return self._directions[key]

    def _run(self, model: nn.Module, batch: Mapping[str, Tensor], loss: LossUnit, seed: int) -> Scores:
        projection = self.projection(model, batch)
        rows = len(batch["labels"])
        copies = 2 * self.num_directions
        positions = Positions.of(batch["labels"].repeat(copies, 1))
        tokens = trained_tokens(batch["labels"])
        moves = 0
        device = batch["labels"].device.type
        autocast = torch.is_autocast_enabled(device)

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            # Off from here to the end of the forward. The flag alone: the forward may bring its own context, which
            # ends before one that was entered here would.
            torch.set_autocast_enabled(device, False)
            repeated = {
                key: _repeat(value, len(value) if key == "alibi" and value is not None else rows, copies)
                for key, value in kwargs.items()
                if key not in _SHARED_BY_ROWS
            }
            return _repeat(args, rows, copies), {**kwargs, **repeated}

        def perturb(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            nonlocal moves
            moves += 1
            moved = output.clone()
            columns = projection.columns
            for k in range(self.num_directions):
                for sign, copy in ((1, 2 * k), (-1, 2 * k + 1)):
                    part = slice(copy * rows, (copy + 1) * rows)
                    a = args[0][part].to(output.dtype)
                    width = output.shape[-1] if columns is None else len(columns)
                    step = sign * self.epsilon * (a @ self.direction(width, a.shape[-1], k, seed, a).T)
                    if columns is None:
                        moved[part] += step
                    else:
                        moved[part, :, columns.to(output.device)] += step
            return moved

        handles = [
            projection.block.register_forward_pre_hook(enter, with_kwargs=True),
            projection.hooked.register_forward_hook(perturb),
        ]
        try:
            found, _ = forward_losses(model, batch, positions)
        finally:
            torch.set_autocast_enabled(device, autocast)
            for handle in handles:
                handle.remove()
        check_executed(moves, 1)
        losses = positions.sum_rows(found).view(self.num_directions, 2, rows)
        differences = ((losses[:, 0] - losses[:, 1]) / (2 * self.epsilon)).T
        if loss == "example_mean":
            differences = differences / tokens.clamp(min=1).unsqueeze(1)
        # The mean of L(w + e z) and L(w - e z) is L(w) up to e^2.
        return Scores(features=differences.contiguous(), losses=losses.mean(dim=(0, 1)), tokens=tokens)


_EXACT = (torch.float32, torch.float64)
_FIXED_BATCH = ("gpt_bigcode",)
# MPT's [heads, 1, tokens]. Bloom's alibi is [rows x heads, 1, tokens], Falcon's [rows, heads, 1, tokens].
_SHARED_BY_ROWS = ("position_bias",)


def _repeat(value: Any, rows: int, copies: int) -> Any:
    """Repeats every tensor [rows, ...] in nested arguments of a block; what broadcasts over rows stays."""
    if isinstance(value, Tensor):
        if value.ndim < 2 or value.shape[0] != rows:
            return value
        repeated = value.repeat(copies, *([1] * (value.ndim - 1)))
        return repeated.float() if repeated.dtype in (torch.bfloat16, torch.float16) else repeated
    if isinstance(value, tuple | list):
        return type(value)(_repeat(item, rows, copies) for item in value)
    if isinstance(value, dict):
        return {key: _repeat(item, rows, copies) for key, item in value.items()}
    if type(value).__name__ == "BlockMask":
        raise UnsupportedModelError("zeroth_order does not go with flex attention. Use attn_implementation='sdpa'.")
    return value
