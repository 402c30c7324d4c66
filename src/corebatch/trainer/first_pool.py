"""What the first pool shows of model, loss and rows: checks, the same forwards on every rank; then what may be packed,
and what of scoring is used again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from corebatch.batch.error_tracking import check_tracking
from corebatch.batch.forwards import free_memory
from corebatch.batch.strategies.base import Reusing
from corebatch.batch.trained_losses import TrainedLosses
from corebatch.errors import ConfigError
from corebatch.model.packing import check_packing, packing_unfit
from corebatch.model.recompute import BlockStates, unfit
from corebatch.model.rows import Padding, put_together, take_rows
from corebatch.sampling.tags import untagged
from corebatch.trainer.checks import check_trained_loss
from corebatch.trainer.engine import sharded
from corebatch.trainer.every_row import check_sum
from corebatch.trainer.hosts import runs_between
from corebatch.trainer.in_backward import moves_in_backward
from corebatch.trainer.loss_probe import check_own_loss
from corebatch.trainer.model_loss import check_loss, two_rows
from corebatch.trainer.own_loss import RowWeights, own_methods
from corebatch.trainer.parts import check_parts
from corebatch.types import ID

logger = logging.getLogger(__name__)


def look(trainer: Any, model: Any, batches: Sequence[dict[str, Tensor]], padding: Padding) -> None:
    """Checks on the first pool; fills in what the run needs to know of it.

    Raises:
        CorebatchError: the loss that is trained is not the one that is claimed; rows cannot be packed and should be.
    """
    run = trainer._run
    step, scoring, method = run.step, run.scoring, run.method
    check_trained_loss(trainer, model)
    check_parts(trainer)
    run.weights = RowWeights.beside(trainer)
    run.in_backward = moves_in_backward(trainer)
    check_tracking(trainer.coreset.track_error, in_backward=run.in_backward, sharded=sharded(trainer))
    failure: Exception | None = None
    why_not = None
    pair = put_together(two_rows(batches), padding)
    try:
        if run.weights.owned:
            check_own_loss(trainer, pair)
        coreset = trainer.coreset
        run.compared = method.selector.weighted or coreset.weighs or (method.scores and method.scorer.needs_forward)
        if run.compared:
            check_loss(model, pair, counts_items=trainer.model_accepts_loss_kwargs)
        if coreset.pool_factor == 1 and coreset.cut.regroups and not run.weights.owned:
            check_sum(trainer, model, batches, padding)
        if scoring.trained is not None:
            scoring.trained.watch(model, untagged(batches[0]))
        why_not = _not_packed(trainer, model, batches)
        step.flops, reason = trainer._recorder.count_flops(model, None if sharded(trainer) else untagged(batches[0]))
        if step.cut.by == "flops" and step.flops is None:
            raise ConfigError(
                f"coreset.micro_batches flops needs a model whose FLOPs can be counted. Found that {reason}. Use "
                "positions."
            )
    except Exception as error:  # of this rank's rows; the others are told before it is raised
        failure = error
    elsewhere = bool(run.ranks.report(failure, int(why_not is not None)).any())
    if elsewhere and why_not is None:
        why_not = "Another rank's rows cannot be packed."
    step.packed, step.flash = _can_pack(trainer, model, why_not), is_flash(model)
    strategy = scoring.strategy
    if isinstance(strategy, Reusing) and strategy.scores_exactly and scoring.scorer.needs_forward:
        step.states = None if run.weights.owned else _block_states(trainer, model, strategy)
    step.losses = _trained_losses(trainer)
    run.prepared = True


def _trained_losses(trainer: Any) -> TrainedLosses | None:
    """What adds up the losses of trained rows, where it is asked for; "auto" asks where there are several sources."""
    wanted, sized = trainer.coreset.loss_by_source, trainer._run.learnt is not None
    if sized:
        wanted = True
    if not wanted or (wanted == "auto" and len(trainer._tagged.latest(trainer).counts) == 1):
        return None
    owned = own_methods(trainer, ("training_step", "compute_loss"))
    return TrainedLosses(first=trainer.is_world_process_zero(), only_weighted=bool(owned), sized=sized)


def is_flash(model: Any) -> bool:
    """Whether the model runs flash attention."""
    return "flash" in str(getattr(getattr(model, "config", None), "_attn_implementation", ""))


def _tries_packing(trainer: Any, model: Any) -> bool:
    wanted = trainer.coreset.padding_free
    if wanted == "auto":
        cut, owned = trainer._run.step.cut, trainer._run.weights.owned
        other = cut.regroups or trainer.coreset.pool_factor > 1
        return other and is_flash(model) and not owned and cut.multiple == 1
    return bool(wanted)


def _not_packed(trainer: Any, model: Any, batches: Sequence[dict[str, Tensor]]) -> str | None:
    """Why this model or this rank's rows cannot be trained without padding, where that is tried."""
    if not _tries_packing(trainer, model):
        return None
    rows = take_rows(batches, range(min(2, len(batches[0][ID]))))
    return packing_unfit(model) or check_packing(model, rows, flash=is_flash(model))


def _can_pack(trainer: Any, model: Any, why_not: str | None) -> bool:
    """Whether micro-batches are trained without padding; all ranks decide alike."""
    if not _tries_packing(trainer, model):
        return False
    if why_not is None:
        return True
    if trainer.coreset.padding_free is True:
        raise ConfigError(f"coreset.padding_free is true, and this model or data cannot be packed. {why_not}")
    if trainer.is_world_process_zero():
        logger.warning("Micro-batches are trained with padding. %s", why_not)
    return False


def _block_states(trainer: Any, model: Any, strategy: Reusing) -> BlockStates | None:
    """Where the scoring forward's block inputs are kept for training, or None with the reason in the log."""
    scoring, checkpoints = trainer._run.scoring, getattr(trainer.args, "gradient_checkpointing", False)
    if strategy.reuse is False or (strategy.reuse == "auto" and not checkpoints):
        return None
    why_not = unfit(model)
    if why_not is None and trainer.model_wrapped is not model:
        why_not = unfit(trainer.model_wrapped)
    if why_not is not None:
        if trainer.is_world_process_zero():
            logger.warning("The scoring forward is not reused for training. %s", why_not)
        return None
    if scoring.reuse_bytes is None:
        scoring.reuse_bytes = _reuse_bytes(trainer, strategy)
    states = BlockStates(model, place=strategy.reuse_place, max_bytes=scoring.reuse_bytes)
    states.watched = runs_between(trainer)
    return states


def _reuse_bytes(trainer: Any, strategy: Reusing) -> int:
    """The cap on what is kept: as set, or half of what is free where it is kept; ranks share a host's memory."""
    if strategy.reuse_gb is not None:
        return int(strategy.reuse_gb * 2**30)
    place = torch.device("cpu") if strategy.reuse_place == "host" else trainer.args.device
    return free_memory(place) // 2 // (1 if place.type == "cuda" else trainer._run.ranks.count)
