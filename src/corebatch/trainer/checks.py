"""What selection does not go with, found before anything is trained."""

from __future__ import annotations

import logging
from typing import Any

from corebatch.batch.method import CoresetStep
from corebatch.errors import UNTOUCHED, ConfigError, LossMismatchError
from corebatch.model.compiling import check_uncompiled, is_asked_for
from corebatch.model.modes import PACKS, packing_linears
from corebatch.sampling.tags import is_stream
from corebatch.scoring import ExcessLoss
from corebatch.trainer.config import CoresetConfig
from corebatch.trainer.every_row import check_counted
from corebatch.trainer.model_loss import check_model, check_normalization, check_router

logger = logging.getLogger(__name__)


def check_stream(args: Any, dataset: Any) -> None:
    """Raises ConfigError for a Ray data set, whose batches come ready-made, so that rows have no ids; and for data
    without a length and no number of steps: nobody could tell when to stop."""
    kind = type(dataset)
    if kind.__module__.split(".")[0] == "ray":
        raise ConfigError(
            f"train_dataset should be a map-style data set (with a length), which the Trainer shares out among Ray's "
            f"workers. Found a Ray data set ({kind.__module__}.{kind.__qualname__}), whose loader hands out finished "
            "batches: their rows have no ids to choose by."
        )
    if args is not None and dataset is not None and not hasattr(dataset, "__len__") and args.max_steps <= 0:
        raise ConfigError("A stream (a train_dataset without a length) needs max_steps above 0. Found none.")


def check_settings(trainer: Any, coreset: CoresetConfig, step: CoresetStep) -> None:
    """Checks a Trainer's settings against those of selection.

    Raises:
        ConfigError: something that selection does not go with; the message says what to use.
        LossMismatchError: the Trainer minimises something else than the cross-entropy of trained tokens.
    """
    _keep_four_bits(trainer.model)
    args = trainer.args
    ranks, loading = trainer.accelerator.num_processes, args.accelerator_config
    stream = trainer.train_dataset is not None and is_stream(trainer.train_dataset)
    chooses = coreset.pool_factor > 1
    problems = [
        (args.n_gpu > 1, "several GPUs in one process (DataParallel)", "one process for each GPU, by torchrun"),
        (getattr(args, "packing", False), "packing", "packing: false; selection works on unpacked rows"),
        (getattr(args, "padding_free", False), "padding_free", "padding_free: false"),
        (
            getattr(args, "train_sampling_strategy", "random") == "batch_rebalance",
            "train_sampling_strategy 'batch_rebalance'",
            "'random' or 'group_by_length'; the chosen rows are sorted by length anyway",
        ),
        *_compiled(trainer),
        (
            stream and chooses and coreset.scoring_settings.remembers,
            f"scoring {coreset.scoring_settings.way!r} on a stream, whose examples cannot be told when they come again",
            "scoring 'full', 'window', 'first_blocks', 'two_phase' by tokens or 'none', or data with a length",
        ),
        (
            ranks > 1 and stream and args.dataloader_num_workers > 1,
            "a stream on several ranks with several loader workers each, whose rows come in no order",
            "dataloader_num_workers 0 or 1, or data with a length",
        ),
        (
            ranks > 1 and (loading.split_batches or loading.dispatch_batches),
            "split_batches or dispatch_batches",
            "Accelerate's default way of loading on several ranks",
        ),
    ]
    if chooses and isinstance(step.scorer, ExcessLoss) and step.scorer.reference is None:
        raise ConfigError(
            "scorer excess_loss needs a reference: give scorer_options.reference the path of a model that was trained "
            "on clean rows, base (the model without its adapters) or average (of its own weights). Found none."
        )
    for bad, found, use in problems:
        if bad:
            raise ConfigError(f"{asked_by(coreset)} does not go with {found}. Use {use}.")
    check_trained_loss(trainer, trainer.model)


def asked_by(coreset: CoresetConfig) -> str:
    """The setting by which corebatch takes part, for messages."""
    if coreset.pool_factor > 1:
        return f"pool_factor {coreset.pool_factor}"
    if coreset.cut.regroups:
        return f"coreset.micro_batches {coreset.cut.by!r}"
    for name in ("sampling", "by_length", "budget"):
        if getattr(coreset, name) is not None:
            return f"coreset.{name}"
    if coreset.weighs:
        return f"coreset.objective {coreset.objective!r}"
    return "coreset.loss_by_source true" if coreset.loss_by_source is True else "coreset.noise_scale"


def check_trained_loss(trainer: Any, model: Any) -> None:
    """What the Trainer's settings and the model's minimise. Called again before the first step: much can be set on a
    Trainer that is made.

    Raises:
        LossMismatchError: something else than the cross-entropy of trained tokens.
        UnsupportedModelError: the model is no causal language model.
    """
    check_model(model)
    args = trainer.args
    smoothing, loss_type = args.label_smoothing_factor, getattr(args, "loss_type", None)
    own = [
        (smoothing > 0, f"label_smoothing_factor {smoothing}"),
        (getattr(trainer, "label_smoother", None) is not None, "label_smoother"),
        (getattr(trainer, "compute_loss_func", None) is not None, "compute_loss_func"),
        (loss_type not in (None, "nll", "chunked_nll"), f"loss_type {loss_type!r}"),
        (bool(getattr(args, "orpo_alpha", None)), "orpo_alpha of Axolotl"),
        (getattr(args, "enable_dft_loss", False), "enable_dft_loss of ms-swift"),
        (getattr(trainer, "aux_loss_enabled", False), "an auxiliary loss of the router (TRL: router_aux_loss_coef)"),
    ]
    for bad, found in own:
        if bad:
            raise LossMismatchError(
                f"corebatch scores and weights the cross-entropy of trained tokens, so the Trainer should "
                f"minimise just that. Found {found}. Switch it off, or train with the plain Trainer ({UNTOUCHED})."
            )
    check_router(model)
    if model is not None:
        check_normalization(model)
        coreset = trainer.coreset
        if coreset.pool_factor == 1 and (coreset.cut.regroups or coreset.budget) and not coreset.weighs:
            check_counted(trainer, model)


def _compiled(trainer: Any) -> list[tuple[bool, str, str]]:
    """What does not go with a compiled decoder; hooks in it are not seen, so that training cannot teach anything."""
    check_uncompiled(trainer.model)
    if not is_asked_for(trainer.accelerator):
        return []
    scoring = trainer._run.scoring.strategy
    told = getattr(trainer, "_told_of_learning", None) is trainer.accelerator
    if scoring.learns and not scoring.only_learns and trainer.is_world_process_zero() and not told:
        trainer._told_of_learning = trainer.accelerator  # settings are looked at again when a run begins
        logger.warning(
            "torch_compile: what the training backward would teach of examples is not learnt (coreset.scoring.learn); "
            "they keep the features of when they were scored."
        )
    sharded = getattr(trainer.accelerator.distributed_type, "value", "")
    return [
        (sharded in ("FSDP", "DEEPSPEED", "MEGATRON_LM"), f"torch_compile on {sharded}", "torch_compile: false"),
        (
            scoring.reuse is True,
            "torch_compile and scoring.reuse true",
            "reuse: auto, or torch_compile: false; a compiled decoder cannot be handed what scoring has computed",
        ),
        (
            scoring.only_learns,
            f"torch_compile and scoring {scoring.way!r} with unknown 'guess'",
            "unknown: score, or torch_compile: false; in a compiled decoder training teaches nothing to remember",
        ),
    ]


def _keep_four_bits(model: Any) -> None:
    """Has bitsandbytes keep four-bit weights in the layout that can be trained through, also when evaluating.

    Raises:
        ConfigError: they are in the other one already.
    """
    if model is None:  # made later, by model_init
        return
    for linear in packing_linears(model.modules()):
        if getattr(getattr(linear.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ConfigError(
                "Four-bit weights should be in the layout that can be trained through. Found the one that bitsandbytes "
                "changes them to at a forward in evaluation mode on a CPU. Load the model anew, and do not run it "
                "before it is trained."
            )
        setattr(linear, PACKS, False)
