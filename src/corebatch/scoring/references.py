"""What an example's loss is compared with: the loss by other weights than those that are trained.

Shape suffixes: L label positions of a batch.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from corebatch.errors import ConfigError, InputError
from corebatch.model.digest import weights_digest
from corebatch.model.head import Positions, find_head
from corebatch.model.head_loss import forward_losses, vocabulary

BASE, AVERAGE = "base", "average"


class Reference(ABC):
    """Gives the token losses of a batch by other weights.

    Attributes:
        other: whether it is a model of its own, which engines that divide the trained one have no part in.
    """

    other = False

    @property
    @abstractmethod
    def in_words(self) -> str:
        """What it is, for a record."""

    def prepare(self, model: nn.Module) -> str:
        """Gets ready for the model that is trained, and returns a digest of what does not move: "" if all of it is the
        trained model's own.

        Raises:
            ConfigError: there is no such reference for this model.
        """
        return ""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Mapping[str, Tensor], positions: Positions) -> Tensor:
        """[L], float."""


class OtherModel(Reference):
    """A model of its own with the same vocabulary, of whatever size; it is never trained.

    Args:
        given: a folder or hub id of a model or of adapters, or the model itself.
    """

    other = True

    def __init__(self, given: str | nn.Module) -> None:
        self._given = given
        self._model: nn.Module | None = None

    @property
    def in_words(self) -> str:
        return self._given if isinstance(self._given, str) else type(self._given).__name__

    def prepare(self, model: nn.Module) -> str:
        made = self._loaded(model)
        heads = [None if head is None else vocabulary(head) for head in (find_head(made), find_head(model))]
        if heads[0] is None or (heads[1] is not None and heads[0] != heads[1]):
            raise ConfigError(
                f"The reference of excess_loss should score the tokens of the trained model, {heads[1]} in number. "
                f"Found {heads[0] or 'no output head'} in {self.in_words}."
            )
        return weights_digest(made.named_parameters()) or ""

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor], positions: Positions) -> Tensor:
        return forward_losses(self._loaded(model), batch, positions)[0]

    def _loaded(self, model: nn.Module) -> nn.Module:
        if self._model is None:
            self._model = _load(self._given) if isinstance(self._given, str) else self._given
        device = next(model.parameters()).device
        if next(self._model.parameters()).device != device:
            self._model = self._model.to(device)
        return self._model


class BaseModel(Reference):
    """The trained model with its adapters off."""

    in_words = "the base model"

    def prepare(self, model: nn.Module) -> str:
        if not hasattr(model, "disable_adapter"):
            raise ConfigError(
                f"The reference base of excess_loss is the model without its adapters. Found {type(model).__name__} "
                "without any: give the path of the model as it was before training."
            )
        return ""

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor], positions: Positions) -> Tensor:
        self.prepare(model)
        asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
        try:
            with model.disable_adapter():  # type: ignore[operator]
                return forward_losses(model, batch, positions)[0]
        finally:
            for parameter in model.parameters():  # switching adapters sets the flag of all of theirs
                parameter.requires_grad_(False)
            for parameter in asking:
                parameter.requires_grad_(True)


class WeightAverage(Reference):
    """The exponential average of the trained weights, in float32 at least: a <- decay a + (1 - decay) w after each
    step, from the first weights.

    Args:
        decay: in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._step = -1
        self._average: dict[str, Tensor] = {}

    @property
    def in_words(self) -> str:
        return f"the average of earlier weights (decay {self.decay:g})"

    def follow(self, model: nn.Module, step: int) -> None:
        """Learns of the weights after optimizer step `step`; 0 is before the first."""
        if step <= self._step:
            return
        self._step = step
        with torch.no_grad():
            for name, weight in _trained(model):
                now = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
                if name not in self._average:
                    self._average[name] = now.clone()
                else:
                    self._average[name] = self._average[name].to(now.device).lerp_(now, 1 - self.decay)

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor], positions: Positions) -> Tensor:
        if not self._average:
            raise InputError("An average of earlier weights is kept by a Trainer's run. Found a model alone.")
        with self._in_place(model):
            return forward_losses(model, batch, positions)[0]

    @contextmanager
    def _in_place(self, model: nn.Module) -> Iterator[None]:
        """The average in the place of the weights: these lie aside, unchanged to the bit."""
        aside = {name: weight.data for name, weight in _trained(model)}
        try:
            for name, weight in _trained(model):
                weight.data = self._average[name].to(weight.device, weight.dtype)
            yield
        finally:
            for name, weight in _trained(model):
                weight.data = aside[name]

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"step": torch.tensor(self._step), **{f"weight.{name}": each for name, each in self._average.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint."""
        self._step = int(state["step"])
        self._average = {key.removeprefix("weight."): each for key, each in state.items() if key != "step"}


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, each) for name, each in model.named_parameters() if each.requires_grad]


def _load(path: str) -> nn.Module:
    """A model, or adapters on their base model, in the type in which it was saved."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = Path(path) / "adapter_config.json"
    try:
        if not adapter.is_file():
            return _whole(AutoModelForCausalLM, path)
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        made: nn.Module = PeftModel.from_pretrained(_whole(AutoModelForCausalLM, base), path)
        return made
    except Exception as error:  # whatever a damaged file makes other packages raise
        found = str(error)[:600] or type(error).__name__
        raise ConfigError(
            f"scorer_options.reference should be a model's folder or hub id. Cannot load {path}: {found}"
        ) from error


def _whole(kind: Any, path: str) -> nn.Module:
    model, found = kind.from_pretrained(path, dtype="auto", output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"it has no weights for {', '.join(missing[:4])}")
    return model


def make_reference(given: str | nn.Module, decay: float) -> Reference:
    """From "base", "average", a path, or a model."""
    if given == BASE:
        return BaseModel()
    return WeightAverage(decay) if given == AVERAGE else OtherModel(given)
