"""The features of examples that are trained, from the backward that trains them: exact, and free."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from corebatch.model.projections import ValueProjection
from corebatch.scoring.base import LossUnit
from corebatch.scoring.value_gradients import ValueGradients, ValueGradientScorer


@dataclass(slots=True)
class _MicroBatch:
    """What is known of the micro-batch in flight.

    Attributes:
        places: LongTensor [k, 4]: number, batch row, start, end of each example.
        weights: [k], what multiplies each example's summed loss.
        tokens: LongTensor [k], trained tokens of each.
        scale: d (what backward starts from) / d (weighted sum of losses), once backward has begun.
        inputs, deltas: of each projection, by its number.
    """

    places: Tensor
    weights: Tensor
    tokens: Tensor
    scale: Tensor | None = None
    inputs: dict[int, Tensor] = field(default_factory=dict)
    deltas: dict[int, Tensor] = field(default_factory=dict)


class TrainedFeatures:
    """Watches the scorer's value projections while the small batch is trained.

    The derivative that reaches a projection's output is weight x scale times that of the example's own summed loss,
    so dividing by both gives the features that scoring would have given, dropout aside. Hooks are quiet unless a
    micro-batch has been announced; with activation checkpointing they take part in whichever run of the block carries
    the gradient.

    Args:
        scorer: whose features are wanted.
        loss: their unit.
        seed: of the scorer's sketches.
    """

    def __init__(self, scorer: ValueGradientScorer, *, loss: LossUnit, seed: int) -> None:
        self.scorer, self.loss, self.seed = scorer, loss, seed
        self._model: weakref.ref[nn.Module] | None = None
        self._handles: list[Any] = []
        self._projections: Sequence[ValueProjection] = ()
        self._now: _MicroBatch | None = None
        self._numbers: list[Tensor] = []
        self._features: list[Tensor] = []

    def watch(self, model: nn.Module, batch: Mapping[str, Tensor]) -> None:
        """Hooks the model's value projections, once."""
        if self._model is not None and self._model() is model:
            return
        self.close()
        self._projections = self.scorer.projections(model, batch)
        self._model = weakref.ref(model)
        self._handles = [p.hooked.register_forward_hook(self._hook(i)) for i, p in enumerate(self._projections)]

    def close(self) -> None:
        """Takes the hooks out."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._model, self._now = [], None, None

    def announce(self, places: Tensor, weights: Tensor, tokens: Tensor) -> None:
        """The next forward and backward train this micro-batch.

        Args:
            places: LongTensor [k, 4] on the CPU: example number (negative: none), batch row, start, end.
            weights: [k], what multiplies each example's summed token loss.
            tokens: LongTensor [k], trained tokens of each.
        """
        self._now = _MicroBatch(places, weights.detach(), tokens)

    def scale_by(self, weighted_sum: Tensor) -> None:
        """Told the weighted sum of losses, so that whatever multiplies it later is known in backward."""
        now = self._now
        if now is not None and weighted_sum.requires_grad:

            def note(grad: Tensor) -> None:
                now.scale = grad.detach()

            weighted_sum.register_hook(note)

    def quiet(self) -> None:
        """No micro-batch is trained now: evaluation, scoring."""
        self._now = None

    def take(self) -> tuple[Tensor, Tensor] | None:
        """(numbers LongTensor [m] on the CPU, features [m, P]) of what was trained since the last call, rows that are
        not finite left out; None if nothing was."""
        if not self._numbers:
            return None
        numbers, features = torch.cat(self._numbers), torch.cat(self._features)
        self._numbers, self._features = [], []
        finite = torch.isfinite(features).all(dim=1)
        return numbers[finite.cpu()], features[finite]

    def _hook(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            now = self._now
            if now is None or not module.training or not output.requires_grad or index in now.deltas:
                return
            activation = args[0].detach()

            def note(grad: Tensor) -> None:
                if now.scale is None or index in now.deltas:
                    return
                now.inputs[index], now.deltas[index] = activation, self._projections[index].values(grad.detach())
                if len(now.deltas) == len(self._projections):
                    self._finish(now)

            output.register_hook(note)

        return hook

    def _finish(self, now: _MicroBatch) -> None:
        """All projections have had their gradient: features of this micro-batch's examples."""
        assert now.scale is not None
        real = [i for i, number in enumerate(now.places[:, 0].tolist()) if number >= 0]
        if not real:  # a filler alone, where there are fewer rows than micro-batches
            return
        spans = [now.places[i, 1:].tolist() for i in real]
        first = now.deltas[0]
        weights = now.weights[real].to(first.device)
        tokens = now.tokens[real]
        divisor = (weights * now.scale.to(weights)).reshape(-1, 1, 1)
        if self.loss == "example_mean":
            divisor = divisor * tokens.clamp(min=1).to(divisor).reshape(-1, 1, 1)
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32

        def rows(values: Tensor) -> Tensor:
            return pad_sequence([values[b, start:end] for b, start, end in spans], batch_first=True).to(dtype)

        with torch.no_grad(), torch.autocast(first.device.type, enabled=False):
            order = range(len(self._projections))
            gradients = ValueGradients(
                deltas=[rows(now.deltas[i]) / divisor.to(dtype) for i in order],
                inputs=[rows(now.inputs[i]) for i in order],
                losses=torch.zeros(len(real), device=first.device),
                tokens=tokens,
            )
            features = self.scorer.features(gradients, self.seed)
        now.inputs.clear()
        self._numbers.append(now.places[real, 0])
        self._features.append(features)
