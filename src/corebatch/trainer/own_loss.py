"""A loss that the user computes: who computes it, and whether it takes the rows' weights and their denominator.

What a step claims is sum_i weight_i L_i / num_items_in_batch, L_i being row i's summed loss. Where the Trainer's own
loss is trained, `CoresetMixin.compute_loss` sees to it. A `compute_loss` of a subclass goes through
`super().compute_loss`, which does, or asks for the weights with `row_weights`; which of the two, and whether it uses
them, is found by calling it (`loss_probe`), and at every step it is counted whether weights were taken.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import TrainerCallback

from corebatch.errors import UNTOUCHED, ConfigError, LossMismatchError, NonFiniteError
from corebatch.sampling.tags import is_stream
from corebatch.seeds import random_states
from corebatch.trainer.config import CoresetConfig
from corebatch.types import IGNORED, PLACES

logger = logging.getLogger(__name__)

WEIGHTS = "loss_weights"
SEAM = ("training_step", "compute_loss", "get_batch_samples")
"""Methods of a Trainer through which the loss, the weights and the denominator go."""
KNOWN = (
    "transformers.trainer",
    "transformers.trainer_seq2seq",
    "trl.trainer.sft_trainer",
    "corebatch.trainer.mixin",
    "corebatch.trainer.sft",
    "axolotl.core.trainers.base",
    "axolotl.core.trainers.mixins.activation_checkpointing",
    "axolotl.core.trainers.mixins.layer_offloading",
    "swift.trainers.seq2seq_trainer",
    "llamafactory.train.sft.trainer",
)
"""Modules of classes whose loss is the cross-entropy that we weight, or refused by their settings."""
_PACKAGES = {name.split(".")[0] for name in KNOWN}
WAY = (
    "Multiply each row's summed loss by `weights = self.row_weights(inputs)` ([B], taken before the model is called) "
    "and return `(weights * row_losses).sum() / num_items_in_batch`, or add to what `super().compute_loss(model, "
    f"inputs, return_outputs, num_items_in_batch)` returns. The plain Trainer ({UNTOUCHED}) trains the loss as it is."
)


def check_bases(kind: type) -> None:
    """Raises ConfigError for a class in which CoresetMixin comes behind the Trainer, whose methods would hide it."""
    names = [base.__name__ for base in kind.__mro__]
    trainers = [i for i, base in enumerate(kind.__mro__) if base is transformers.Trainer]
    if trainers and trainers[0] < names.index("CoresetMixin"):
        raise ConfigError(
            f"CoresetMixin should stand before the Trainer among the bases of {kind.__name__}, or nothing of it is "
            f"used. Found {', '.join(names[1:-1])}: write class {kind.__name__}(CoresetMixin, ...)."
        )


def check_beside(coreset: CoresetConfig, owned: Sequence[str]) -> None:
    """Raises ConfigError for settings that need the loss to be ours.

    Args:
        coreset: the settings.
        owned: see `RowWeights`.
    """
    reuses = coreset.pool_factor > 1 and coreset.scoring_settings.reuse is True
    for bad, found in (
        (coreset.track_error > 0, f"track_error {coreset.track_error}, which measures gradients of the cross-entropy"),
        (coreset.padding_free is True, "padding_free true, where weights are of tokens and not of rows"),
        (reuses, "scoring.reuse true, which needs the forward that trains to be ours"),
        (coreset.budget is not None, "budget, by which a loss may come in parts"),
        (coreset.cut.most is not None, f"micro_batches.most {coreset.cut.most}, by which a loss may come in parts"),
    ):
        if owned and bad:
            raise ConfigError(f"{owned[0]} computes the loss itself. Found coreset.{found}. Leave it at its default.")


def own_methods(trainer: Any, names: Sequence[str] = SEAM) -> list[str]:
    """Methods of these names that neither corebatch, transformers nor TRL's SFTTrainer wrote, each with its place."""
    found = [f"{type(trainer).__name__}.{name} (set on the object)" for name in names if name in vars(trainer)]
    for base in type(trainer).__mro__:
        written = [name for name in names if name in vars(base) and _is_own(base, vars(base)[name])]
        found += [f"{base.__name__}.{name} ({_place(base, vars(base)[name])})" for name in written]
    return found


def _is_own(base: type, method: Any) -> bool:
    """By where the function was written: a patch may borrow the name and the module of what it replaces."""
    if base.__module__ not in KNOWN:
        return True
    package = getattr(method, "__globals__", {}).get("__name__", "").split(".")[0]
    return package not in _PACKAGES


def _place(base: type, method: Any) -> str:
    code = getattr(method, "__code__", None)
    return base.__module__ if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def divides_by_accumulation(trainer: Any, *, counted: bool) -> bool:
    """Whether `Trainer.training_step` takes the loss for a mean of one micro-batch and divides it by their number.

    Args:
        counted: it hands `num_items_in_batch` to `compute_loss`.
    """
    said = None
    if hasattr(transformers.Trainer, "loss_is_scaled_for_ga"):  # older ones do not ask
        said = trainer.loss_is_scaled_for_ga
    return not (trainer.model_accepts_loss_kwargs and counted if said is None else said)


def as_the_trainer_wants(trainer: Any, loss: Tensor) -> Tensor:
    """The loss over the step's denominator, times what the Trainer or the engine divides it by later: ranks, over which
    DDP and its kin average gradients and which the denominator counts all, and perhaps micro-batches."""
    loss = loss * trainer.accelerator.num_processes
    return (
        loss * trainer.current_gradient_accumulation_steps if divides_by_accumulation(trainer, counted=True) else loss
    )


class LossWatch(TrainerCallback):
    """Before any weight of the model is moved: the rows' weights have reached the loss of every micro-batch, also
    where a `training_step` of the user's own computes it. A step that trains nothing is told of, once. The tokens
    of weighted rows go into the count that TRL's SFTTrainer logs."""

    def __init__(self, trainer: Any) -> None:
        self._trainer, self._told = trainer, False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self._trainer
        trainer._run.weights.check_taken(trainer)
        step = trainer._recorder.step
        if step is not None and trainer._run.weights.given and hasattr(trainer, "_total_train_tokens"):
            # TRL counts in its own loss, which is not called where rows have weights.
            trainer._total_train_tokens += step["tokens_trained"]
            trainer._metrics["train"]["num_tokens"] = [trainer._total_train_tokens]
        if step is not None and step["labels_trained"] == 0 and not self._told:
            self._told = True
            if no_row_is_trained(trainer):
                raise NonFiniteError(
                    f"At step {state.global_step + 1} there is no loss, and there would be none later: no row of the "
                    f"train set has a trained token. No weight was moved. {trainer._recorder.trained_rows()}Raise the "
                    "length that cuts answers off (max_length), or look at what the labels are made of."
                )
            if state.is_world_process_zero:
                logger.warning(
                    "At step %d no row of the small batch has a trained token: its loss is 0, as the Trainer's would "
                    "be. Later steps of the kind are not told of; selection.jsonl has labels_trained 0. Drop such "
                    "rows, or raise the length that cuts their answers off.",
                    state.global_step + 1,
                )


class RowWeights:
    """The weights of one step's micro-batches, on their way to whoever computes the loss.

    Attributes:
        given: micro-batches of this step that have weights.
        behind: a `compute_loss` of the user's own stands behind CoresetMixin, in the Trainer that it is mixed into, and
            takes the weights itself.
        owned: the methods named `compute_loss` that the user wrote.
        checking: a check is calling, with weights and a denominator of its own.
    """

    def __init__(self, trainer: Any) -> None:
        self.owned = own_methods(trainer, ("compute_loss",))
        self.behind, self.checking = _behind(type(trainer)), False
        self.given = self._taken = 0
        self._items: Any = None
        self._last: tuple[Any, Tensor, Any] | None = None

    @classmethod
    def beside(cls, trainer: Any) -> RowWeights:
        """Before the first step, since methods may have been replaced after the Trainer was made.

        Raises:
            ConfigError: a loss of the user's own beside settings that need ours.
        """
        weights, scoring = cls(trainer), trainer._run.scoring
        check_beside(trainer.coreset, weights.owned)
        if weights.owned and scoring.trained is not None:
            scoring.trained.close()
            scoring.trained = None  # a backward of another loss does not teach what is scored
        return weights

    def begin(self, batches: Sequence[dict[str, Any]], items: Any) -> None:
        """A step begins.

        Args:
            batches: its micro-batches on this rank.
            items: `num_items_in_batch` as the Trainer is given it.
        """
        self.given, self._taken, self._last = sum(WEIGHTS in batch for batch in batches), 0, None
        self._items = items

    def take(self, inputs: Any) -> tuple[Tensor | None, Any]:
        """Takes (weights, places) out of a micro-batch; (None, None) where it has none. Whoever asks a second time for
        the same rows, as `super().compute_loss` behind `row_weights`, gets them again."""
        if not isinstance(inputs, dict):
            return None, None
        weights, places = inputs.pop(WEIGHTS, None), inputs.pop(PLACES, None)
        ids = inputs.get("input_ids")
        if weights is not None:
            self._taken += 1
            self._last = (ids, weights, places)
        elif self._last is not None and ids is not None and ids is self._last[0]:
            return self._last[1], self._last[2]
        return weights, places

    def of_rows(self, trainer: Any, inputs: dict[str, Any]) -> Tensor:
        """What `CoresetMixin.row_weights` gives, [B]."""
        ids = next(value for value in inputs.values() if isinstance(value, Tensor) and value.ndim > 0)
        weights = None
        if trainer.coreset.takes_part and trainer.model.training:
            weights, _ = self.take(inputs)
            if weights is None and (self.given or self.checking):
                raise LossMismatchError(
                    f"row_weights should be given the inputs that compute_loss receives. Found {', '.join(inputs)} "
                    f"without {WEIGHTS}: see {_named(trainer)}."
                )
        if weights is None:
            return torch.ones(len(ids), device=ids.device)
        if divides_by_accumulation(trainer, counted=True):
            weights = weights * trainer.current_gradient_accumulation_steps
        if not getattr(trainer.args, "average_tokens_across_devices", False):
            weights = weights * trainer.accelerator.num_processes  # num_items_in_batch counts all ranks
        return weights.to(ids.device)

    def check_items(self, trainer: Any, received: Any) -> None:
        """Raises LossMismatchError where a method on the way has lost or changed `num_items_in_batch`."""
        lost = received is None and (self.checking or self._items is not None)
        known = self._items is not None and received is not self._items and not self.checking
        if lost or (known and float(received) != float(self._items)):
            raise LossMismatchError(
                f"num_items_in_batch should reach compute_loss as get_batch_samples gives it. Found {received}: "
                f"{_named(trainer)} should pass it on. The plain Trainer ({UNTOUCHED}) does without."
            )

    def check_taken(self, trainer: Any) -> None:
        """Raises LossMismatchError where fewer micro-batches than were given had their weights taken."""
        if not self.all_taken:
            raise LossMismatchError(
                f"The weights of all {self.given} micro-batches of a step should reach their loss. Found that "
                f"{self.given - self._taken} were trained without: see {_named(trainer)}. {WAY}"
            )

    @property
    def all_taken(self) -> bool:
        """Whether every micro-batch of the step has had its weights taken."""
        return self._taken >= self.given


def _behind(kind: type) -> bool:
    """Whether the Trainer that CoresetMixin is mixed into has a `compute_loss` of the user's own."""
    names = [base.__name__ for base in kind.__mro__]
    return any(
        "compute_loss" in vars(base) and _is_own(base, vars(base)["compute_loss"])
        for base in kind.__mro__[names.index("CoresetMixin") + 1 :]
    )


def _named(trainer: Any) -> str:
    return " or ".join(own_methods(trainer)) or f"{type(trainer).__name__}.compute_loss"


def no_row_is_trained(trainer: Any) -> bool:
    """Whether not one row of the train set has a trained token; looks until the first that has one, and draws no random
    number of the run. A stream, which cannot be looked through, is taken to have one."""
    dataset = trainer.train_dataset
    if is_stream(dataset):
        return False
    collator = trainer._get_collator_with_removed_columns(trainer.data_collator, description="training")
    with random_states(devices=[]):
        rows = (dataset[number] for number in range(len(dataset)))
        return not any(bool((collator([row])["labels"] != IGNORED).any()) for row in rows)
