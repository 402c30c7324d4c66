"""How long the micro-batches of a run take: some are timed, and a step of any shapes is told from them.

A forward and a backward of a micro-batch of b rows padded to w positions is taken to cost c0 + c1 b w + c2 b w^2, with
coefficients of at least 0: what is the same for every call, the products with weights, and attention. They are found by
least squares of relative errors.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from corebatch.bench.advise.probe import Probe
from corebatch.model.flops import finish
from corebatch.model.modes import forward_inputs
from corebatch.model.weighted_loss import weighted_loss

Dims = tuple[int, int]
"""Batch rows and positions of a micro-batch."""
FEWEST, MOST = 3, 16
"""Micro-batches that are timed."""
ROUNDS = 3
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Timed:
    """Micro-batches that were timed.

    Attributes:
        dims: rows and positions of each.
        seconds: of each, the least of its rounds: whatever else the machine does only adds.
    """

    dims: Sequence[Dims]
    seconds: Sequence[float]

    def coefficients(self, without: int | None = None) -> Floats:
        """c [3]; `without`: leaves one micro-batch out, to see how much hangs on it."""
        kept = [i for i in range(len(self.dims)) if i != without]
        known = terms([self.dims[i] for i in kept])
        seconds = np.array([self.seconds[i] for i in kept])
        return nonnegative(known / seconds[:, None], np.ones(len(kept)))

    def predict(self, dims: Sequence[Dims], without: int | None = None) -> Floats:
        """Seconds of micro-batches of such shapes."""
        found: Floats = terms(dims) @ self.coefficients(without)
        return found


def terms(dims: Sequence[Dims]) -> Floats:
    """What each coefficient multiplies: [K, 3]."""
    rows, widths = np.array(dims, dtype=np.float64).reshape(-1, 2).T
    return np.stack([np.ones_like(rows), rows * widths, rows * widths**2], axis=1)


def nonnegative(matrix: Floats, wanted: Floats) -> Floats:
    """Least squares with coefficients of at least 0: of all sets of columns the best whose solution has no negative
    one. matrix: [K, C] with few columns, wanted: [K]."""
    best, found = float("inf"), np.zeros(matrix.shape[1])
    scale = np.abs(matrix).max(axis=0)
    for chosen in range(1, 2 ** matrix.shape[1]):
        columns = [c for c in range(matrix.shape[1]) if chosen >> c & 1 and scale[c] > 0]
        if not columns:
            continue
        solved, *_ = np.linalg.lstsq(matrix[:, columns] / scale[columns], wanted, rcond=None)
        error = float(((matrix[:, columns] / scale[columns] @ solved - wanted) ** 2).sum())
        if (solved >= 0).all() and error < best * (1 - 1e-9):
            best, found = error, np.zeros(matrix.shape[1])
            found[columns] = solved / scale[columns]
    return found


def weighted(probe: Probe) -> bool:
    """Whether the config's loss is the weighted one."""
    return probe.settings.coreset.weighs or probe.settings.coreset.pool_factor > 1


def train_once(probe: Probe, batch: Mapping[str, Any], *, weights: bool | None = None) -> float:
    """Seconds of a forward and a backward as a step makes them, in training mode; gradients are let go of.

    Args:
        batch: a micro-batch with labels, on the device.
        weights: whether the loss is the weighted one, which computes logits at labels alone; None: as the config's.
    """
    probe.model.train()
    finish(probe.device)
    began = time.perf_counter()
    with probe.autocast():
        if weighted(probe) if weights is None else weights:
            loss, _ = weighted_loss(
                probe.model, probe.model, batch, torch.ones_like(batch["labels"], dtype=torch.float32)
            )
        else:
            loss = probe.model(**forward_inputs(batch), labels=batch["labels"]).loss
    loss.backward()
    finish(probe.device)
    took = time.perf_counter() - began
    probe.model.zero_grad(set_to_none=True)
    return took


def time_some(probe: Probe, batches: Sequence[Mapping[str, Any]], *, seconds: float) -> Timed | None:
    """Times micro-batches, small and large ones, in turn; as many and as often as go into the seconds, or None where
    FEWEST of them do not.

    Args:
        batches: all that come into question, on the host or the device.
    """
    end = time.monotonic() + seconds
    order = sorted(batches, key=lambda batch: batch["labels"].numel())
    train_once(probe, _on_device(probe, order[0]))  # what a first call sets up
    first = train_once(probe, _on_device(probe, order[0]))
    mean = first * sum(batch["labels"].numel() for batch in order) / len(order) / order[0]["labels"].numel()
    count = int((end - time.monotonic()) / (2 * mean))
    if count < FEWEST and FEWEST * mean > end - time.monotonic():
        return None
    count = min(max(count, FEWEST), MOST, len(order))
    chosen = [order[i] for i in np.linspace(0, len(order) - 1, count).round().astype(int)]
    best = [float("inf")] * count
    for number in range(ROUNDS):
        for place in range(count)[:: 1 if number % 2 else -1]:
            if number and time.monotonic() > end:
                break
            took = train_once(probe, _on_device(probe, chosen[place]))
            best[place] = min(best[place], took)
    dims = [(int(batch["labels"].shape[0]), int(batch["labels"].shape[1])) for batch in chosen]
    return Timed(dims, best)


def _on_device(probe: Probe, batch: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.to(probe.device) if hasattr(value, "to") else value for key, value in batch.items()}
