"""What an online objective follows, in a Trainer: the losses of what a step trained, or held-out ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from corebatch.batch.online import OnlineObjective
from corebatch.batch.trained_losses import unknown
from corebatch.errors import ConfigError
from corebatch.model.modes import evaluating
from corebatch.model.rows import trained_tokens
from corebatch.model.weighted_loss import weighted_loss
from corebatch.objective import Objective
from corebatch.sampling.online import make_online
from corebatch.seeds import random_states

GRADIENTS = ("last_layer", "zeroth_order")
"""Scorers whose features are gradients of an example's loss."""
SCORES_ALL = ("full", "every")
"""Ways of scoring that have the features of every row, if not at every step."""


class OnlineWatch(TrainerCallback):
    """After each optimizer step, on every rank alike and before a checkpoint is written, tells the run's online
    objective what it follows.

    Args:
        trainer: whose run it is.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raises LossMismatchError where the losses of sources are not known."""
        run = self._trainer._run
        online: OnlineObjective | None = run.online
        if online is None or online.method.needs_gradients:  # or the step itself tells it
            return
        step = state.global_step
        if online.method.needs_held_out:
            due = online.method.due
            if due is not None and step >= due and step < state.max_steps:
                online.observe(held_out_losses(self._trainer, run.step.claims.counts.names, online), step)
            return
        found = None if run.step.losses is None else run.step.losses.by_source
        if found is None:
            raise unknown(
                f"coreset.objective online {online.method.name} follows the training loss of each source", step
            )
        online.observe(found, step)


def held_out_losses(trainer: Any, names: Mapping[int, str], online: OnlineObjective) -> dict[int, tuple[float, float]]:
    """(sum of token losses, tokens) of each source that the method measures, by number, over its held-out set and all
    ranks. Neither the log nor callbacks hear of it, and nothing is drawn from a global generator."""
    wanted, found = set(online.method.measured), {}
    with random_states(), evaluating(trainer.model_wrapped), torch.no_grad(), trainer.compute_loss_context_manager():
        for source, name in sorted(names.items()):
            if name in wanted:
                loader = trainer.get_eval_dataloader(trainer.eval_dataset[name])
                loss, tokens = torch.stack([_of_batch(trainer, batch) for batch in loader]).sum(0).tolist()
                found[source] = (loss, tokens)
    return found


def _of_batch(trainer: Any, batch: Mapping[str, Any]) -> Tensor:
    """[2]: summed token losses and tokens of a batch, over the ranks' rows but for those that even them out."""
    model, inputs = trainer.model_wrapped, trainer._prepare_inputs(batch)
    losses: list[Tensor] = []
    ones = torch.ones(len(inputs["labels"]), device=inputs["labels"].device)
    weighted_loss(model, trainer._run.model(model), inputs, ones, losses.append)
    each = losses[0].sum(1)
    pairs = torch.stack([each, trained_tokens(inputs["labels"]).to(each)], dim=1)
    return trainer.accelerator.gather_for_metrics(pairs).cpu().double().sum(0)


def check_followed(objective: Objective, coreset: Any, scorer: str) -> None:
    """Raises ConfigError for settings without what an online objective follows.

    Args:
        objective: the settings' own, online or not.
        coreset: the settings.
        scorer: the name of theirs.
    """
    if objective.online is None:
        return
    method, what = make_online(objective.online, objective.options), f"coreset.objective online {objective.online}"
    if method.needs_gradients:
        way = coreset.scoring_settings.way
        if coreset.pool_factor == 1 or way not in SCORES_ALL or scorer not in GRADIENTS:
            raise ConfigError(
                f"{what} follows the gradients by which rows are scored: set pool_factor above 1, scorer to "
                f"{' or '.join(GRADIENTS)}, and scoring to {' or '.join(SCORES_ALL)}. Found pool_factor "
                f"{coreset.pool_factor}, scorer {scorer}, scoring {way}."
            )
    elif not method.needs_held_out and coreset.loss_by_source is False:
        raise ConfigError(f"{what} follows the training loss of each source. Found loss_by_source false: leave it out.")


def check_held_out(trainer: Any, online: OnlineObjective) -> None:
    """Raises ConfigError, before the first step, where a source lacks the held-out set that the method follows."""
    method, sets = online.method, trainer.eval_dataset
    there = list(sets) if isinstance(sets, Mapping) else []
    missing = [name for name in method.measured if name not in there]
    if method.needs_held_out and missing:
        raise ConfigError(
            f"coreset.objective online {method.name} follows held-out losses: eval_dataset should be a dictionary of "
            f"held-out sets by source (in a config file eval_datasets with rows of every source, and eval_by_source "
            f"true). Found none for {', '.join(missing)}."
        )
