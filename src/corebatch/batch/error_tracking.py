"""How near is the small batch's gradient to the large batch's? Computed exactly, at a sample of the steps.

With g the gradient by everything that is trained, in evaluation mode (no dropout) and of the loss that the run
minimises:

    error   = |g_small - g_large| / |g_large|
    cosine  = <g_small, g_large> / (|g_small| |g_large|)
    length  = |g_small| / |g_large|

g_small has the weights that training uses. The same is measured of a random batch of the same size, drawn by a
generator of its own, with the mean that the selector `random` would train. What is measured costs a forward and a
backward of every row of the large batch and a second one of the chosen rows. The random batch and the rows that it
leaves are two independent parts of what was drawn, however rows are chosen: they tell the noise of the gradient
(`corebatch.noise`).

Nothing of the run is touched: gradients come from `autograd.grad`, so that no `.grad` is written and no hook of DDP
runs; the modules' modes and the random state are left as they were.

Shape suffixes: N rows of the large batch, M of the small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from corebatch.batch.claims import Claim
from corebatch.batch.pool import Pool
from corebatch.distributed.ranks import Ranks
from corebatch.errors import ConfigError, UnsupportedModelError
from corebatch.model.modes import scoring_mode
from corebatch.model.rows import Padding, put_together, take_rows
from corebatch.model.weighted_loss import weighted_loss
from corebatch.noise import Noise, noise_of_parts
from corebatch.sampling.tags import untagged
from corebatch.scoring import LossUnit
from corebatch.seeds import seeded

DIGITS = 6
"""Of the numbers that are recorded."""


def check_tracking(every: int, *, in_backward: bool, sharded: str | None) -> None:
    """Raises ConfigError where exact gradients cannot be had beside training.

    Args:
        every: `CoresetConfig.track_error`; 0 is never.
        in_backward: whether weights are updated inside backward: its hooks would run in ours.
        sharded: the engine that divides weights or gradients over ranks, or None.
    """
    for bad, found in (
        (sharded is not None, f"{sharded}, which divides them over ranks"),
        (in_backward, "an optimizer that updates weights inside backward"),
    ):
        if every and bad:
            raise ConfigError(
                f"coreset.track_error {every} needs whole gradients beside training: one process or DDP, and an "
                f"optimizer that steps after backward. Found {found}. Set track_error to 0."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step has drawn and chosen, the same on every rank but for `batches`.

    Attributes:
        batches: this rank's rows of the pool, on the model's device.
        pool: of all ranks.
        candidates: LongTensor [N] on the CPU: positions in the pool of the large batch.
        chosen: LongTensor [M] on the CPU: positions in the pool of the small batch.
        claim: of the candidates.
        weights: [M], what each chosen row's summed loss is multiplied by; None: one.
        denominator: what the weighted sum over all ranks is divided by; None: the chosen rows' trained tokens.
    """

    batches: Sequence[Mapping[str, Tensor]]
    pool: Pool
    candidates: Tensor
    chosen: Tensor
    claim: Claim
    weights: Tensor | None
    denominator: Tensor | None


class ErrorTracking:
    """Measures, at every k-th step, the small batch's gradient against the large batch's.

    Args:
        loss: its unit.
        seed: of the random batch.
        rows: of one forward and backward. Evaluation mode has no activation checkpointing.
    """

    def __init__(self, *, loss: LossUnit, seed: int, rows: int) -> None:
        self.loss, self.seed, self.rows = loss, seed, max(1, rows)
        self._noise: Noise | None = None

    def take_noise(self) -> Noise | None:
        """What the large batch of the step that was measured last tells of the noise; asked a second time, None."""
        found, self._noise = self._noise, None
        return found

    def measure(
        self,
        ranks: Ranks,
        model: nn.Module,
        step: Step,
        number: int,
        padding: Padding,
        by_token: Mapping[str, bool] | None = None,
    ) -> dict[str, Any]:
        """{"error", "cosine", "length", "norm" of the large batch's gradient, "random": the first three of a random
        batch}; None in place of what is not finite. Every rank calls it and gets the same.

        Args:
            model: without wrappers.
            number: of the optimizer step; with the seed it determines the random batch.
        """
        pool, candidates, chosen = step.pool, step.candidates, step.chosen
        drawn = torch.randperm(len(candidates), generator=seeded(self.seed, number, "track"))[: len(chosen)]
        random = torch.zeros(len(candidates), dtype=torch.bool)
        random[drawn] = True
        tokens_N, parts_N = pool.tokens[candidates], step.claim.parts
        # Of an example: its sum of token losses, or its mean, as it counts.
        by_example = self.loss == "example_mean"
        unit_N = 1 / tokens_N.clamp(min=1).double() if by_example else torch.ones(len(candidates), dtype=torch.float64)
        unit_N = unit_N if step.claim.factors is None else unit_N * step.claim.factors
        weights = torch.ones(len(chosen)) if step.weights is None else step.weights.detach().cpu()
        divisor = float(pool.tokens[chosen].sum() if step.denominator is None else step.denominator)

        def gradient(positions: Tensor, weights: Tensor, onto: list[Tensor] | None = None) -> list[Tensor]:
            return self._gradient(ranks, model, step.batches, pool, positions, weights, padding, by_token, onto)

        with ranks.together("Tracking the gradient's error"):
            of_random = gradient(candidates[random], unit_N[random])
            of_large = gradient(candidates[~random], unit_N[~random], [part.clone() for part in of_random])
        ranks.add_up(of_random, "gradients")
        ranks.add_up(of_large, "gradients")
        _scale(of_random, float(parts_N[random].sum()))
        _scale(of_large, float(parts_N.sum()))
        self._noise = _noise(of_random, of_large, float(parts_N[random].sum() / (parts_N.sum() or 1)), len(candidates))
        beside = _distances(of_random, of_large)
        del of_random
        with ranks.together("Tracking the gradient's error"):
            of_small = gradient(chosen, weights)
        ranks.add_up(of_small, "gradients")
        _scale(of_small, divisor)
        found = _distances(of_small, of_large)
        return {**found, "norm": _rounded(math.sqrt(_dot(of_large, of_large))), "random": beside}

    def _gradient(
        self,
        ranks: Ranks,
        model: nn.Module,
        batches: Sequence[Mapping[str, Tensor]],
        pool: Pool,
        positions: Tensor,
        weights: Tensor,
        padding: Padding,
        by_token: Mapping[str, bool] | None,
        onto: list[Tensor] | None,
    ) -> list[Tensor]:
        """sum_i weights_i d (summed loss of row i) / d (each trained parameter), over those rows of the pool that this
        rank holds, added to `onto`."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise UnsupportedModelError("The model should have trained parameters. Found none.")
        total = [torch.zeros_like(p, dtype=_wide(p)) for p in trained] if onto is None else onto
        here = (pool.ranks[positions] == ranks.index).nonzero().flatten()
        # Rows of like length together waste the least padding.
        here = here[torch.sort(pool.lengths[positions[here]], stable=True).indices]
        device, dtype = trained[0].device, _wide(trained[0])
        devices = [device.index] if device.type != "cpu" and device.index is not None else []
        kind = "cuda" if device.type == "cpu" else device.type
        with torch.random.fork_rng(devices, device_type=kind), scoring_mode(model), torch.enable_grad():
            for start in range(0, len(here), self.rows):
                part = here[start : start + self.rows]
                rows = take_rows(batches, pool.rows[positions[part]].tolist(), by_token)
                batch = untagged(put_together(rows, padding))
                each = weights[part].to(dtype).to(batch["input_ids"].device)
                loss, _ = weighted_loss(model, model, batch, each)
                for whole, found in zip(total, torch.autograd.grad(loss, trained, allow_unused=True), strict=True):
                    if found is not None:
                        whole += found
        return total


def _wide(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _scale(gradient: list[Tensor], divisor: float) -> None:
    for part in gradient:
        part /= divisor or 1.0


def _dot(one: list[Tensor], other: list[Tensor]) -> float:
    return sum(float((a * b).sum(dtype=torch.float64)) for a, b in zip(one, other, strict=True))


def _distances(estimate: list[Tensor], truth: list[Tensor]) -> dict[str, float | None]:
    """Error, cosine and length of `estimate` against `truth`."""
    square = sum(
        float((a - b).square().sum(dtype=torch.float64)) for a, b in zip(estimate, truth, strict=True)
    )  # the difference itself: |a|^2 + |b|^2 - 2 <a, b> would lose it to rounding
    own, large = math.sqrt(_dot(estimate, estimate)), math.sqrt(_dot(truth, truth))
    if large == 0:
        return {"error": None, "cosine": None, "length": None}
    cosine = _dot(estimate, truth) / (own * large) if own > 0 else 0.0
    return {
        "error": _rounded(math.sqrt(square) / large),
        "cosine": _rounded(cosine),
        "length": _rounded(own / large),
    }


def _noise(one: list[Tensor], all_of_them: list[Tensor], share: float, rows: int) -> Noise | None:
    """Of the mean gradients of a random part and of all rows; None where the part has all, or none, of what counts.

    Args:
        share: of the whole that the part is.
        rows: of the whole.
    """
    own, cross, whole = share**2 * _dot(one, one), share * _dot(one, all_of_them), _dot(all_of_them, all_of_them)
    if not 0 < share < 1 or not math.isfinite(own + cross + whole):
        return None
    return noise_of_parts([own, whole - 2 * cross + own], [share, 1 - share], whole, rows)


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
