"""What `corebatch bench step` measures: settings, arms, and rows of drawn lengths, checked before anything runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer

from corebatch.bench.models import ADAPTERS, PRECISIONS, model_config
from corebatch.errors import ConfigError, DataError
from corebatch.trainer import CoresetConfig
from corebatch.types import IGNORED

ACCUMULATION, SORTED, SMALL, COREBATCH = "accumulation", "plain_sorted", "small batch", "corebatch"
SCORED = "full"
ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    SCORED: {"scoring": "full"},
    "full, no reuse": {"scoring": {"way": "full", "reuse": False}},
    "last_layer 3 blocks": {"scorer_options": {"num_blocks": 3}, "scoring": "full"},
    "first 2 blocks": {"scoring": {"way": "first_blocks", "blocks": 2}},
    "window 32": {"scoring": {"way": "window", "tokens": 32}},
    "every 4": {"scoring": {"way": "every", "steps": 4}},
    "two phase": {"scoring": {"way": "two_phase"}},
    "remembered": {"scoring": "remembered"},
    "none (tokens x importance)": {"scorer": "tokens", "selector": "importance"},
}
"""The `coreset:` block of each corebatch arm, without pool_factor."""

TARGETS = {("lora", 2): 1.45, ("full", 2): 1.5, ("lora", 4): 1.9, ("full", 4): 2.1}
"""How many times faster than accumulation a step should be, by adapter and ratio; N = 128, with checkpointing."""
TARGET_LARGE = 128

CHARACTERS_A_TOKEN = 4  # where there is no tokenizer
DEFAULT_LENGTH = 512
OVERHEAD = ("load", "exchange", "select", "repack")  # phases of a step that are neither forward nor backward
LEARNING_RATE = 1e-5  # small, so that arms that share the weights find them alike


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What is measured.

    Attributes:
        model: a preset's name, a folder with config.json, or a JSON file.
        adapter: "lora" or "full".
        precision: "float32" or "bfloat16".
        checkpointing: whether activations are recomputed in the backward.
        large: N, rows of the large batch.
        micro_batch: rows of one forward and backward.
        ratios: N / M of the small batches.
        lengths: JSON lines whose rows' lengths are drawn, or None.
        length: tokens of every row, all trained, instead of `lengths`; 512 by default.
        max_length: longer rows are cut.
        steps: measured in a round, after one that is not.
        rounds: of all arms.
        arms: corebatch arms beside or instead of those in ARMS; None leaves an arm out.
        random_weights: False reads the model's weights where there are some.
        seed: of weights, lengths, token ids and the order of rows.

    Raises:
        ConfigError: a value out of range.
    """

    model: str
    adapter: str = "lora"
    precision: str = "float32"
    checkpointing: bool = True
    large: int = 128
    micro_batch: int = 8
    ratios: Sequence[int] = (2, 4, 8)
    lengths: Path | None = None
    length: int | None = None
    max_length: int = 512
    steps: int = 3
    rounds: int = 5
    arms: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    random_weights: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("adapter", ADAPTERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} should be {' or '.join(known)}. Found {getattr(self, name)!r}.")
        for name, least in (("large", 1), ("micro_batch", 1), ("steps", 1), ("rounds", 1), ("max_length", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} should be at least {least}. Found {getattr(self, name)}.")
        if self.length is not None and self.length < 2:
            raise ConfigError(f"length should be at least 2. Found {self.length}.")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed should be at least 0 and below 2**32. Found {self.seed}.")
        if not self.ratios or min(self.ratios) < 2 or len(set(self.ratios)) < len(self.ratios):
            raise ConfigError(f"ratios should be different numbers of at least 2. Found {list(self.ratios)}.")
        for ratio in self.ratios:
            if self.large % (ratio * self.micro_batch):
                raise ConfigError(
                    f"The large batch should be a multiple of ratio x micro-batch, here {ratio} x {self.micro_batch}, "
                    f"so that both batches are whole micro-batches. Found {self.large}."
                )
        if self.lengths is not None and self.length is not None:
            raise ConfigError("Lengths come from a file or are one number. Found both lengths and length.")
        if self.lengths is None and not 2 <= (self.length or DEFAULT_LENGTH) <= self.max_length:
            raise ConfigError(
                f"length should be between 2 and max_length {self.max_length}. Found {self.length or DEFAULT_LENGTH}."
            )


@dataclass(frozen=True, slots=True)
class Shape:
    """A row's tokens, and how many of them, at its end, are trained."""

    tokens: int
    trained: int


@dataclass(frozen=True, kw_only=True, eq=False)
class StepArm:
    """One way to train.

    Attributes:
        kind: ACCUMULATION, SORTED, SMALL or COREBATCH.
        name: the kind, or the corebatch arm's.
        ratio: N / M.
        coreset: of arms that are trained by a CoresetTrainer.
    """

    kind: str
    name: str
    ratio: int = 1
    coreset: CoresetConfig | None = None

    @property
    def period(self) -> int:
        """Steps after which costs repeat: an arm that scores at every 4th step costs the mean of 4 steps, and a median
        of single ones would not see the dear one."""
        return 1 if self.coreset is None else self.coreset.scoring_settings.period or 1

    def steps(self, wanted: int) -> int:
        """At least as many as wanted, in whole periods."""
        return -(-wanted // self.period) * self.period


@dataclass(frozen=True)
class StepPlan:
    """Checked settings: what will run, and why some arms will not."""

    settings: StepSettings
    shapes: list[Shape]
    arms: list[StepArm]
    notes: list[str]


def parse_arms(texts: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """From "name={yaml block}", as often as wanted; "name=null" leaves an arm out. Raises ConfigError: another form."""
    arms: dict[str, dict[str, Any] | None] = {}
    for text in texts:
        name, equals, block = text.partition("=")
        name = name.strip()
        try:
            value = yaml.safe_load(block)
        except yaml.YAMLError as error:
            raise ConfigError(f"The arm {name!r} should be YAML after the =. Found {block!r}: {error}") from error
        if not name or not equals or not (isinstance(value, dict) or (value is None and block.strip())):
            raise ConfigError(f"An arm should look like 'name={{scorer: loss}}' or 'name=null'. Found {text!r}.")
        arms[name] = value
    return arms


def plan(settings: StepSettings) -> StepPlan:
    """Reads lengths and configurations, so that what is wrong is an error before anything runs. An arm of ARMS that
    this version of CoresetConfig refuses is left out, and a note names its error. Raises ConfigError: no such model or
    file, an arm of the user's that CoresetConfig refuses, rows longer than the model takes, several GPUs or ranks;
    DataError: a row without a length."""
    if torch.cuda.device_count() > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("Steps are measured on one device. Found several: set CUDA_VISIBLE_DEVICES to one of them.")
    config = model_config(settings.model)
    if settings.lengths is None:
        length = settings.length or DEFAULT_LENGTH
        shapes = [Shape(length, length)]
    else:
        shapes = read_shapes(settings.lengths, settings.max_length, _tokenizer(settings.model))
    longest, limit = max(shape.tokens for shape in shapes), getattr(config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ConfigError(f"{settings.model} takes rows of {limit} tokens at most. Found {longest}: lower max_length.")
    blocks = {**ARMS, **settings.arms}
    arms, notes = [StepArm(kind=ACCUMULATION, name=ACCUMULATION), _sorted(1)], []
    for ratio in settings.ratios:
        arms.append(StepArm(kind=SMALL, name=SMALL, ratio=ratio))
        if settings.large > ratio * settings.micro_batch:
            arms.append(_sorted(ratio))
        else:
            notes.append(f"left out: {SORTED} at 1/{ratio} (one micro-batch has nothing to sort: it is the {SMALL})")
        for name, block in blocks.items():
            if block is None:
                continue
            if "pool_factor" in block:
                raise ConfigError(f"The arm {name!r} should have no pool_factor: the ratios give it. Found {block!r}.")
            try:
                coreset = CoresetConfig.from_dict({**block, "pool_factor": ratio})
            except ConfigError as error:
                if name in settings.arms:
                    raise ConfigError(f"The arm {name!r}: {error}") from error
                note = f"left out: {name} (ConfigError: {error})"
                notes += [note] if note not in notes else []
                continue
            arms.append(StepArm(kind=COREBATCH, name=name, ratio=ratio, coreset=coreset))
    return StepPlan(settings, shapes, arms, notes)


def _sorted(ratio: int) -> StepArm:
    """Plain training on N / ratio rows, sorted by length before they are cut into micro-batches."""
    return StepArm(
        kind=SORTED, name=SORTED, ratio=ratio, coreset=CoresetConfig(pool_factor=1, micro_batches="positions")
    )


def read_shapes(path: Path, max_length: int, tokenizer: Any = None) -> list[Shape]:
    """The shapes of a file's rows, as many as have a trained token after cutting.

    A row has `input_ids` (with `labels`, -100 where not trained), `prompt` and `completion` (which alone is trained),
    or `text`. Texts are tokenised, or without a tokenizer count a token for four characters. Raises ConfigError: the
    file cannot be read; DataError: a line is no JSON object or has none of these, or no row has a trained token.
    """

    def count(text: Any, line: int) -> int:
        if not isinstance(text, str):
            raise DataError(f"{path}, line {line}: a text should be a string. Found {type(text).__name__}.")
        return -(-len(text) // CHARACTERS_A_TOKEN) if tokenizer is None else len(tokenizer(text)["input_ids"])

    shapes = []
    for line, row in _rows(path):
        if "input_ids" in row:
            ids, labels = row["input_ids"], row.get("labels", row["input_ids"])
            if not isinstance(ids, list) or not isinstance(labels, list) or len(ids) != len(labels):
                raise DataError(f"{path}, line {line}: `input_ids` and `labels` should be lists of one length.")
            prompt = next((i for i, label in enumerate(labels) if label != IGNORED), len(ids))
            kept = min(len(ids), max_length)
        elif "prompt" in row and "completion" in row:
            prompt = count(row["prompt"], line)
            kept = min(prompt + count(row["completion"], line), max_length)
        elif "text" in row:
            prompt, kept = 0, min(count(row["text"], line), max_length)
        else:
            raise DataError(
                f"{path}, line {line}: a row should have `input_ids`, `prompt` and `completion`, or `text`. "
                f"Found {', '.join(map(repr, row)) or 'nothing'}."
            )
        if kept >= 2 and kept > prompt:  # the first token is predicted by nothing
            shapes.append(Shape(kept, kept - prompt))
    if not shapes:
        raise DataError(f"{path} should have rows with a trained token among the first {max_length}. Found none.")
    return shapes


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"lengths should be a file of JSON lines. {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: should be a JSON object. Found an error: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: should be a JSON object. Found {type(row).__name__}.")
        yield number, row


def _tokenizer(model: str) -> Any:
    """The tokenizer in the model's folder, or None."""
    folder = Path(model)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
