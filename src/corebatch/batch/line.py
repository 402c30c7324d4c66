"""The record's line of a step, as far as it is known before training."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from corebatch.batch.layout import Layout
from corebatch.batch.method import Choice
from corebatch.batch.plan import Plan
from corebatch.batch.pool import Pool
from corebatch.batch.scoring import Scoring
from corebatch.batch.trained_losses import by_source
from corebatch.distributed.ranks import Ranks
from corebatch.model.recompute import BlockStates
from corebatch.scoring import Scores


def step_line(
    pool: Pool,
    plan: Plan,
    scores: Scores | None,
    choice: Choice,
    layout: Layout,
    scoring: Scoring,
    ranks: Ranks,
    *,
    names: Any,
    states: BlockStates | None,
    drawn_losses: bool = False,
) -> dict[str, Any]:
    """The fields of `selection.jsonl` that a step knows; the writer adds time, epoch and the trained loss.

    Args:
        names: names[s] is the name of source s.
        states: of which the peak of kept block inputs is told.
        drawn_losses: whether losses are told by source.
    """
    candidates, tokens, selection = plan.candidates, pool.tokens, choice.selection
    chosen = candidates[selection.indices.cpu()]
    scored = plan.exact if scoring.scorer.needs_forward else plan.exact[:0]
    losses = None
    if scores is not None and scores.losses is not None and len(scored) == len(candidates):
        losses = scores.losses.double().cpu()
    work, tokens_trained = scoring.forwards.work, int(pool.lengths[chosen].sum())
    tokens_scored = scoring.tokens_scored(pool, scored)
    line: dict[str, Any] = {
        "drawn": per_source(pool.sources[candidates], names),
        "chosen": per_source(pool.sources[chosen], names),
        "weights": weights_per_source(pool.sources[chosen], selection.weights, names),
        "kept": [group.name for group in choice.groups if group.keep],
        "pool_examples": len(candidates),
        "chosen_examples": len(chosen),
        "examples_scored": len(scored),
        "scoring": scoring.way,
        "pool_loss": None if losses is None else _mean(losses, tokens[candidates]),
        "chosen_loss": None if losses is None else _mean(losses[selection.indices.cpu()], tokens[chosen]),
        "tokens_scored": tokens_scored,
        "tokens_trained": tokens_trained,
        "labels_scored": int(tokens[scored].sum()),
        "labels_trained": int(tokens[chosen].sum()),
        "weight_max": selection.weight_max,
        "effective_sample_size": selection.effective_sample_size,
        "positions_scored": _scaled(work.positions, work.tokens, tokens_scored),
        "positions_trained": layout.positions,
        "positions_plain": layout.positions_plain,
        "largest_micro_batch": layout.largest,
        "largest_plain": layout.largest_plain,
        "rows_moved": len(layout.shares.moving),
        "token_imbalance": round(layout.shares.imbalance, 4),
        "bytes_sent": ranks.take_sent(),
    }
    line |= {"drawn_at_random": choice.at_random} if scoring.step.random_every else {}
    if drawn_losses and losses is not None:
        line["drawn_loss_by_source"] = by_source(losses, tokens[candidates], pool.sources[candidates], names)
    if scoring.step.feedback is not None:
        line["carried"] = round(scoring.step.feedback.size, 4)
    return line if states is None else {**line, "reuse_mb": round(states.peak_bytes / 2**20, 3)}


def _mean(losses: Tensor, tokens: Tensor) -> float:
    """Of a token, of rows' summed losses and trained tokens."""
    return float(losses.sum() / tokens.sum().clamp(min=1))


def per_source(ids: Tensor, names: Any) -> dict[str, int]:
    """How many rows each source has, by name, in order of the source numbers."""
    return {names[source]: count for source, count in sorted(Counter(ids.tolist()).items())}


def weights_per_source(ids: Tensor, weights: Tensor, names: Any) -> dict[str, float]:
    """The sum of the weights of each source's rows, by name, in order of the source numbers.

    (Sum of a source's weights) / M estimates its share of the large batch's rows.
    """
    kinds, places = torch.unique(ids.cpu(), return_inverse=True)
    sums = torch.zeros(len(kinds), dtype=torch.float64).index_add_(0, places, weights.detach().double().cpu())
    return {names[kind]: float(f"{value:.6g}") for kind, value in zip(kinds.tolist(), sums.tolist(), strict=True)}


def _scaled(positions: int, here: int, everywhere: int) -> int:
    """Positions on this rank, with `here` tokens in them, scaled up to the tokens of all ranks."""
    return round(positions * everywhere / here) if here else positions
