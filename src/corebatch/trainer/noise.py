"""Measures the noise of the gradient while training, from gradients that are there anyway.

The lengths of each micro-batch's own gradients are taken by hooks on the trained parameters, before they are
accumulated and before ranks exchange them; that of the whole once they are, before it is clipped. Only lengths are
taken, no copy; where rows are sorted by length also sketches of 256 numbers a parameter, by which micro-batches of like
lengths are compared. `corebatch.noise.noise_of_sums` makes estimates of both, which are smoothed over steps.

It needs a step's rows to be independent. Rows that were chosen jointly are not: how far they make up for each other
cannot be told from what rows have in common: the choice's own error would have to be known to a part of |G|^2, which is
itself a small part of it. Nor can it be told by gradients of other steps: weights have moved along those, so that the
gradient that is left is against them. Rows at random beside the chosen ones would tell it, and cost as much as is
trained to tell it as well. There `coreset.track_error` tells it at its steps, from the rows that were drawn; or, where
`coreset.noise_scale` is a number, every so-many-th step draws the rows that it trains at random.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from corebatch.errors import InputError
from corebatch.noise import Noise, RunningNoise, Sketches, length, noise_of_sums, within_sorted
from corebatch.trainer.auto import is_auto
from corebatch.trainer.noise_checks import EVERY, FEWEST, FEWEST_SORTED, check_noise, is_sorted, why_not
from corebatch.types import IGNORED

logger = logging.getLogger(__name__)

DIGITS = 6


class NoiseMeter:
    """Measures at every so-many-th step.

    Attributes:
        every: so many; 0 is never.
        running: the average over steps.
        found: what the last step gave; None where it did not measure, or could not.
    """

    def __init__(self, trainer: Any) -> None:
        setting = trainer.coreset.noise_scale
        self.every = EVERY if is_auto(setting) else int(setting)
        self.running = RunningNoise()
        self.found: Noise | None = None
        self._trainer, self._told = trainer, False
        self._measures = False
        self._handles: list[Any] = []
        self._parameters: list[Tensor] = []
        self._norms: list[Tensor | None] = []
        self._squares: list[Tensor] = []
        self._sketches: Sketches | None = None  # where micro-batches are sorted
        self._folded: list[Tensor | None] = []
        self._parts: list[Tensor] = []
        self._order: list[int] = []
        self._extents = torch.zeros(0)
        self._whole: Tensor | None = None
        self._twice, self._rows = False, 0

    def begin(self, made: Sequence[Mapping[str, Any]], rows: int) -> None:
        """A step begins.

        Args:
            made: this rank's micro-batches, in the order in which they are trained.
            rows: of all ranks.

        Raises:
            ConfigError: noise was asked for, and the optimizer or the engine does not let it be measured.
        """
        self.close()
        self._whole, self._squares, self._parts, self._twice, self._measures = None, [], [], False, False
        self.found = self._trainer._run.step.tracking.take_noise() if self.every else None
        if self.found is not None:
            self.running.update(self.found)
            return
        self._measures = bool(self.every) and (self._trainer.state.global_step + 1) % self.every == 0
        if not self._measures or not self._can():
            return
        self._extents, self._rows = torch.stack([_extent(batch) for batch in made]), rows
        trained = self._trainer._run.model().parameters()
        self._parameters = [parameter for parameter in trained if parameter.requires_grad]
        if is_sorted(self._trainer.coreset):
            self._sketches = Sketches(self._parameters)
            self._order = sorted(range(len(made)), key=lambda part: made[part]["input_ids"].shape[1])

    def listen(self) -> None:
        """A micro-batch is about to be trained: with the first of a step that is measured, hooks go on. Not before:
        somebody's callback may take gradients of its own."""
        if not self._measures or self._handles:
            return
        self._norms, self._folded = [None] * len(self._parameters), [None] * len(self._parameters)
        for place, parameter in enumerate(self._parameters):
            self._handles.append(parameter.register_hook(partial(self._see, place)))

    def _can(self) -> bool:
        """Whether parts of this step tell the noise; where they never do, it is not asked again."""
        check_noise(self._trainer)
        if (reason := why_not(self._trainer)) is not None:
            self._measures = False
            self.every = self.every if self._trainer.coreset.track_error else 0
            self._tell(f"found {reason}", logging.INFO)
        return self._measures

    def _see(self, place: int, gradient: Tensor) -> None:
        self._twice = self._twice or self._norms[place] is not None
        self._norms[place] = length(gradient)
        if self._sketches is not None:
            self._folded[place] = self._sketches.of(gradient)

    def end_part(self, *, last: bool = False) -> None:
        """A micro-batch was trained. `last`: gradients are those of the whole step now, and of all ranks."""
        if not self._handles:
            return
        self._squares.append(_squared(self._norms))
        if self._sketches is not None:
            blank, device = torch.zeros(1), self._squares[0].device
            self._parts.append(pad_sequence([(blank if each is None else each).to(device) for each in self._folded]))
        self._norms, self._folded = [None] * len(self._parameters), [None] * len(self._parameters)
        if last:
            gradients = [each.grad for each in self._parameters]
            self._whole = _squared(None if each is None else length(each) for each in gradients)
            self.close()

    def message(self, device: torch.device) -> Tensor:
        """What `settle` wants the sum over ranks of, [6], the same length on every rank: the squared lengths of parts
        and of the whole, extents and their squares, how many parts have any (of sorted ones whether there are enough),
        and whether something is amiss."""
        wide = torch.float32 if device.type == "mps" else torch.float64
        if not self._measures:
            return torch.zeros(0, dtype=wide, device=device)
        count = self._trainer.accelerator.num_processes
        scaler = getattr(self._trainer.accelerator, "scaler", None)
        unit = 1.0 if scaler is None else 1 / scaler.get_scale() ** 2  # of fp16's scaled loss
        squares = torch.stack(self._squares).to(device, wide).sum() if self._squares else torch.zeros((), device=device)
        whole = torch.zeros((), device=device) if self._whole is None else self._whole.to(device, wide)
        amiss = self._twice or self._whole is None or len(self._squares) != len(self._extents)
        shares = self._shares(self._extents.to(device, wide))
        squared_shares, parts = shares.square().sum(), (shares > 0).sum()
        if self._sketches is not None:
            parts = parts >= FEWEST_SORTED
            if parts and not amiss:
                squares = squares - self._within(shares).to(squares)
                squared_shares = torch.zeros_like(squared_shares)
        return torch.stack(
            [
                squares.to(wide) * unit / count**2,  # ranks' gradients are averaged
                whole.to(wide) * unit / count,
                shares.sum(),
                squared_shares,
                parts.to(wide),
                shares.new_tensor(float(amiss)),
            ]
        )

    def _within(self, shares: Tensor) -> Tensor:
        """What products of this rank's sorted micro-batches leave out of the signal."""
        known = shares.tolist()
        order = [part for part in self._order if known[part] > 0]
        sketches = torch.stack([self._parts[part].flatten() for part in order])
        return within_sorted(sketches @ sketches.T, shares[order].to(sketches))

    def _shares(self, extents: Tensor) -> Tensor:
        """[J] in proportion to the share of the update that each micro-batch has in expectation."""
        mean_over = self._trainer._run.step.mean_over
        if self._trainer._run.weights.given or mean_over == "step":
            return extents
        if mean_over == "rank":
            return extents / extents.sum().clamp(min=1)
        return (extents > 0).to(extents)

    def settle(self, numbers: Sequence[float]) -> None:
        """The step has been run on every rank. `numbers`: the sum of all ranks' messages."""
        if not numbers:
            return
        parts, whole, total, squared, count, amiss = numbers
        if amiss:
            self._tell("a parameter has several gradients in one backward, or a micro-batch was trained otherwise")
        elif self._sketches is not None and count < self._trainer.accelerator.num_processes:
            self._tell(f"a rank has fewer than {FEWEST_SORTED} micro-batches with rows, sorted by length")
        elif self._sketches is None and count < FEWEST:
            self._tell(f"a step has {count:.0f} micro-batches, of which it takes {FEWEST}")
        elif math.isfinite(parts) and math.isfinite(whole):  # not where fp16's scale is too large
            try:
                self.found = noise_of_sums(parts, squared / total**2, whole, self._rows)
            except InputError as error:
                self._tell(str(error))
            else:
                self.running.update(self.found)

    def line(self) -> dict[str, float | None]:
        """The fields of the record's line."""
        if not self._measures and self.found is None:
            return {}
        found, scale = self.found, self.running.scale
        known: tuple[float | None, ...] = (None, None, None)
        if found is not None:
            known = found.signal, found.trace, None if scale is None or math.isinf(scale) else scale
        rounded = (None if value is None else float(f"{value:.{DIGITS}g}") for value in known)
        return dict(zip(("noise_signal", "noise_trace", "noise_scale"), rounded, strict=True))

    def in_words(self) -> str:
        """Whether it is measured, for the run's record."""
        if not self.every:
            return "not measured"
        if (reason := why_not(self._trainer)) is None:
            drawn = ", whose rows are drawn at random" if self._trainer._run.method.random_every else ""
            return f"measured at every step whose number {self.every} divides{drawn}"
        every = self._trainer.coreset.track_error
        drawn = f"; measured by the rows drawn at every step whose number {every} divides" if every else ""
        return f"not measured by what is trained: {reason}{drawn}"

    def close(self) -> None:
        """Takes hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _tell(self, reason: str, level: int = logging.WARNING) -> None:
        if self._trainer.is_world_process_zero() and not self._told:
            logger.log(level, "The noise scale of the gradient is not measured: %s.", reason.rstrip("."))
        self._told = True


def _extent(batch: Mapping[str, Any]) -> Tensor:
    """What a micro-batch claims: its trained tokens, each times the weight of its row."""
    trained, weights = (batch["labels"][:, 1:] != IGNORED).float(), batch.get("loss_weights")
    if weights is None:
        return trained.sum()
    return (trained * (weights[:, None] if weights.ndim == 1 else weights[:, 1:])).sum()


def _squared(lengths: Iterable[Tensor | None]) -> Tensor:
    known = [each for each in lengths if each is not None]
    if not known:
        return torch.zeros(())
    return torch.stack([each.to(known[0].device) for each in known]).square().sum()
