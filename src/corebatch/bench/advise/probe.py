"""What measurements of `corebatch advise` are made on: the config's model, a sample of its rows, and the time left."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments, set_seed

from corebatch.bench.advise.finding import MORE_MINUTES
from corebatch.config.building import load_model, load_tokenizer, read_mixture
from corebatch.config.settings import Settings
from corebatch.errors import ConfigError
from corebatch.mixture import Mixture, PaddingCollator
from corebatch.seeds import seeded

SAMPLE = 2048
"""Rows of the sample, at most."""


@dataclass(kw_only=True)
class Probe:
    """What a measurement gets. It leaves weights, gradients and modes of the model as they were.

    Attributes:
        settings, args: the config, and its TrainingArguments.
        model: on the device, with adapters if the config trains them, as `train` would begin: LoRA's B is zero.
        mixture: all rows of `datasets`, tokenised.
        sample: `datasets.Dataset` of at most SAMPLE of its rows, drawn at random without replacement, in random order;
            the columns are input_ids, labels, source and length.
        order: their numbers in the mixture.
        collate: makes a padded batch of rows.
        checkpoints: folders, by their steps.
        seed: of whatever is drawn.
        deadline: when the measurement should have ended, by `time.monotonic`.
        known: what one measurement leaves for another, by a name of its own.
    """

    settings: Settings
    args: TrainingArguments
    model: Any
    tokenizer: Any
    mixture: Mixture
    sample: Any
    collate: PaddingCollator
    device: torch.device
    order: Sequence[int] = ()
    checkpoints: Sequence[Path] = ()
    seed: int = 0
    deadline: float = float("inf")
    known: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        """Of this measurement's share of the minutes; negative where it is over."""
        return self.deadline - time.monotonic()

    def forget_hurried(self) -> None:
        """Takes out of what is known all that says why it was not measured, if that was for want of time."""
        words = {name: str(value) for name, value in self.known.items() if isinstance(value, str | Exception)}
        self.known = {name: value for name, value in self.known.items() if MORE_MINUTES not in words.get(name, "")}

    @property
    def batch_size(self) -> int:
        """Rows that a step trains, over all ranks."""
        args = self.args
        return int(args.per_device_train_batch_size * args.gradient_accumulation_steps * max(args.world_size, 1))

    @property
    def sources(self) -> list[str]:
        """The source of each row of the sample."""
        return [str(name) for name in self.sample["source"]]

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """input_ids, attention_mask, labels: LongTensor [B, T] each, on the device."""
        return {key: value.to(self.device) for key, value in self.collate(rows).items()}

    def autocast(self) -> AbstractContextManager[Any]:
        """Forwards within are in the precision that the config trains in."""
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)


def make_probe(settings: Settings, *, seconds: float = float("inf"), checkpoints: Path | None = None) -> Probe:
    """Reads data and model, as `train` would.

    Args:
        seconds: until the deadline, from now.
        checkpoints: a folder with `checkpoint-N` folders in it, or one of these; or None.

    Raises:
        ConfigError: settings, model or data that `train` would refuse; a folder without checkpoints.
    """
    deadline = time.monotonic() + seconds
    found = () if checkpoints is None else checkpoint_folders(checkpoints)
    args = settings.training_arguments()
    tokenizer = load_tokenizer(settings.model)
    mixture = read_mixture(settings, tokenizer)
    set_seed(args.seed)  # adapters are drawn as `train` draws them
    model = load_model(settings)
    if not settings.model.load_in_4bit:  # which lie where they were packed
        model = model.to(args.device)
    if getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing:
        switch = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        switch({"use_reentrant": False})
    rows = torch.randperm(len(mixture.dataset), generator=seeded(args.seed, "advise")).tolist()[:SAMPLE]
    return Probe(
        settings=settings, args=args, model=model, tokenizer=tokenizer, mixture=mixture,
        sample=mixture.dataset.select(rows), order=rows, collate=PaddingCollator(tokenizer), device=args.device,
        checkpoints=found, seed=int(args.seed), deadline=deadline,
    )  # fmt: skip


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in it by their steps, or itself where it is one. Raises ConfigError: it has none."""
    steps = {
        int(m[1]): path for path in folder.glob("checkpoint-*") if (m := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    if not steps and not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ConfigError(
            f"--checkpoints should be a folder with checkpoint-N folders, or one of these. Found {folder}."
        )
    return [steps[step] for step in sorted(steps)] or [folder]
