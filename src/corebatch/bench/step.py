"""What a step costs beside plain accumulation: `corebatch bench step`.

Four kinds of arms train the same model on the same rows through real trainers, in turn:

- accumulation: plain training on the large batch of N rows, in micro-batches;
- grouped: the same N rows a step, sorted by length before they are cut into micro-batches, since corebatch sorts its
  small batch and sorting alone saves padding;
- small: plain training on M = N / ratio rows;
- corebatch: N rows drawn, M trained, once for each way of scoring in ARMS.

A round is every arm once, in an order that turns from round to round; a ratio of times is taken within a round, so
that whatever else the machine does falls on all alike. Weights and token ids are random: neither changes the time.
"""

from __future__ import annotations

import gc
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from corebatch.bench.live_bytes import LiveBytes
from corebatch.bench.models import ADAPTERS, PRECISIONS, build_model, model_config
from corebatch.bench.run import provenance
from corebatch.errors import ConfigError, DataError, InputError
from corebatch.scoring import trained_tokens
from corebatch.scoring.base import IGNORED
from corebatch.trainer import CoresetConfig, CoresetTrainer
from corebatch.trainer.record import LOG

ACCUMULATION, GROUPED, SMALL, COREBATCH = "accumulation", "accumulation, grouped by length", "small batch", "corebatch"
RECOMMENDED = "full"
ARMS: dict[str, dict[str, Any]] = {
    RECOMMENDED: {},
    "full, no reuse": {"scoring": {"way": "full", "reuse": False}},
    "last_layer 1 block": {"scorer_options": {"num_blocks": 1}},
    "first 2 blocks": {"scoring": {"way": "first_blocks", "blocks": 2}},
    "window 128": {"scoring": {"way": "window", "tokens": 128}},
    "every 4": {"scoring": {"way": "every", "steps": 4}},
    "two phase": {"scoring": {"way": "two_phase"}},
    "none (tokens x importance)": {"scorer": "tokens", "selector": "importance"},
}
"""The `coreset:` block of each corebatch arm, without pool_factor."""

TARGETS = {("lora", 2): 1.45, ("full", 2): 1.5, ("lora", 4): 1.9, ("full", 4): 2.1}
"""How many times faster than accumulation a step should be, by adapter and ratio; N = 128, with checkpointing."""
TARGET_LARGE = 128

CHARACTERS_A_TOKEN = 4  # where there is no tokenizer
DEFAULT_LENGTH = 512
DEFAULT_EVERY = 4  # steps of the way "every", where a block does not say
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
class Arm:
    """One way to train.

    Attributes:
        kind: ACCUMULATION, GROUPED, SMALL or COREBATCH.
        name: the kind, or the corebatch arm's.
        ratio: N / M.
        coreset: of corebatch arms.
    """

    kind: str
    name: str
    ratio: int = 1
    coreset: CoresetConfig | None = None

    @property
    def period(self) -> int:
        """Steps after which costs repeat: an arm that scores at every 4th step costs the mean of 4 steps, and a median
        of single ones would not see the dear one."""
        scoring = getattr(self.coreset, "scoring", None)
        scoring = {"way": scoring} if isinstance(scoring, str) else scoring
        read = scoring.get if isinstance(scoring, Mapping) else lambda key: getattr(scoring, key, None)
        return max(int(read("steps") or DEFAULT_EVERY), 1) if read("way") == "every" else 1

    def steps(self, wanted: int) -> int:
        """At least as many as wanted, in whole periods."""
        return -(-wanted // self.period) * self.period


@dataclass(frozen=True)
class Plan:
    """Checked settings: what will run, and why some arms will not."""

    settings: StepSettings
    shapes: list[Shape]
    arms: list[Arm]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One arm in one round.

    Attributes:
        seconds: of a measured step, median.
        tokens, labels, cells: a measured step trains, means: attended tokens, trained labels, tokens with padding.
        scored: attended tokens scored a step, mean.
        score_share, overhead_share: of a measured step's time, for corebatch arms: scoring; OVERHEAD.
        padding_scored, mfu: the share of padding in what is scored, and of the device's peak FLOPs, as the run tells.
        reuse_mb: kept of the scoring forward for training, MB (2^20 bytes), where the run tells.
        start_bytes, peak_bytes: memory at a step's start and at its peak, where it was measured.
    """

    seconds: float
    tokens: float
    labels: float
    cells: float
    scored: float = 0.0
    score_share: float | None = None
    overhead_share: float | None = None
    padding_scored: float | None = None
    mfu: float | None = None
    reuse_mb: float | None = None
    start_bytes: int | None = None
    peak_bytes: int | None = None


def parse_arms(texts: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """From "name={yaml block}", as often as wanted; "name=null" leaves an arm out.

    Raises:
        ConfigError: another form.
    """
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


def plan(settings: StepSettings) -> Plan:
    """Reads lengths and configurations, so that what is wrong is an error before anything runs. An arm of ARMS that
    this version of CoresetConfig refuses is left out, and a note names its error.

    Raises:
        ConfigError: no such model or file, an arm of the user's that CoresetConfig refuses, rows longer than the model
            takes, several GPUs or ranks.
        DataError: a row without a length.
    """
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
    arms, notes = [Arm(kind=ACCUMULATION, name=ACCUMULATION), Arm(kind=GROUPED, name=GROUPED)], []
    for ratio in settings.ratios:
        arms.append(Arm(kind=SMALL, name=SMALL, ratio=ratio))
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
            arms.append(Arm(kind=COREBATCH, name=name, ratio=ratio, coreset=coreset))
    return Plan(settings, shapes, arms, notes)


def read_shapes(path: Path, max_length: int, tokenizer: Any = None) -> list[Shape]:
    """The shapes of a file's rows, as many as have a trained token after cutting.

    A row has `input_ids` (with `labels`, -100 where not trained), `prompt` and `completion` (which alone is trained),
    or `text`. Texts are tokenised, or without a tokenizer count a token for four characters.

    Raises:
        ConfigError: the file cannot be read.
        DataError: a line is no JSON object or has none of these, or no row has a trained token.
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


# ---- one arm, through the real trainer -------------------------------------------------------------------------------


class _Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Random token ids of the drawn shapes."""

    def __init__(self, shapes: Sequence[Shape], count: int, vocabulary: int, seed: int) -> None:
        self.shapes = random.Random(seed).choices(shapes, k=count)
        ids = torch.randint(1, vocabulary, (sum(s.tokens for s in self.shapes),), generator=_generator(seed))
        self.ids = ids.split([shape.tokens for shape in self.shapes])

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        shape, ids = self.shapes[index], self.ids[index]
        labels = ids.clone()
        labels[: shape.tokens - shape.trained] = IGNORED
        return {"input_ids": ids, "labels": labels}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _collate(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Padded on the right: LongTensor [B, T] each."""
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORED),
        "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
    }


def group_by_length(batches: Sequence[Mapping[str, Tensor]], micro_batch: int) -> list[dict[str, Tensor]]:
    """The same rows, padded on the right, in micro-batches of like lengths, the longest first."""
    width = max(batch["input_ids"].shape[1] for batch in batches)
    fill = {"labels": IGNORED}
    rows = {key: torch.cat([_widened(batch[key], width, fill.get(key, 0)) for batch in batches]) for key in batches[0]}
    lengths = rows["attention_mask"].sum(dim=1)
    made = []
    for part in lengths.argsort(descending=True, stable=True).split(micro_batch):
        longest = int(lengths[part[0]])
        made.append({key: value[part, :longest] for key, value in rows.items()})
    return made


def _widened(values: Tensor, width: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]), value=fill)


class _Counted(Trainer):
    """A Trainer that counts what it trains: (tokens, labels, cells) for each step, on the device until they are read.
    It stands before CoresetMixin's override, so it sees the small batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counts: list[list[Tensor | int]] = []

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *args: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, *args)
        if batches:
            masks = [batch["attention_mask"].sum() for batch in batches]
            labels = [trained_tokens(batch["labels"]).sum() for batch in batches]
            cells = sum(batch["input_ids"].numel() for batch in batches)
            self.counts.append([torch.stack(masks).sum(), torch.stack(labels).sum(), cells])
        return batches, items


class _Grouping(Trainer):
    """A Trainer that sorts the rows of a step by length before it cuts them into micro-batches."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *args: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, *args)
        return (group_by_length(batches, self.args.per_device_train_batch_size) if batches else batches), items


class _GroupedTrainer(_Counted, _Grouping):
    pass


class _CorebatchTrainer(_Counted, CoresetTrainer):
    pass


TRAINERS = {ACCUMULATION: _Counted, GROUPED: _GroupedTrainer, SMALL: _Counted, COREBATCH: _CorebatchTrainer}


class _Clock(TrainerCallback):
    """Times from the end of a step to the end of the next, loading and scoring included, and memory.

    On a GPU the allocator tells the peak of each step. On the CPU `live` counts through the steps after the measured
    ones, which are not timed, since counting slows them.

    Args:
        steps: measured, after one that is not.
        live: counts from there to the end of training; None on a GPU and where memory is not asked for.
    """

    def __init__(self, steps: int, live: LiveBytes | None) -> None:
        self.steps, self.live = steps, live
        self.ends: list[float] = []
        self.peaks: list[int] = []
        self.start_bytes: int | None = None
        self._counting = False

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.synchronize()
            self.peaks.append(torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
            self.start_bytes = torch.cuda.memory_allocated()
        if state.global_step <= 1 + self.steps:
            self.ends.append(time.perf_counter())
        if self.live is not None and state.global_step == 1 + self.steps:
            self.live.track(_alive(given["model"], given["optimizer"]))
            self.start_bytes = self.live.live_bytes
            self.live.__enter__()
            self._counting = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the counting, also of a step that failed."""
        if self._counting and self.live is not None:
            self.live.__exit__(None, None, None)
            self._counting = False

    @property
    def seconds(self) -> list[float]:
        """Of each measured step."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def _alive(model: Any, optimizer: Any) -> Iterator[Any]:
    for parameter in model.parameters():
        yield parameter
        yield parameter.grad
    yield from model.buffers()
    for state in optimizer.state.values():
        yield from state.values()


def run_arm(arm: Arm, model: Any, rows: Any, settings: StepSettings, *, number: int, memory: bool) -> Run:
    """Trains one warm-up step and the measured ones; the model's weights move a little.

    Args:
        number: of the round; rounds draw the rows in orders of their own, all arms of a round in the same.
        memory: whether the peak is measured too.
    """
    gpu = torch.cuda.is_available()
    steps = arm.steps(settings.steps)
    live = LiveBytes() if memory and not gpu else None
    clock = _Clock(steps, live)
    with tempfile.TemporaryDirectory(prefix="corebatch-bench-") as folder:
        args = TrainingArguments(
            folder,
            per_device_train_batch_size=settings.micro_batch,
            gradient_accumulation_steps=settings.large // arm.ratio // settings.micro_batch,
            max_steps=1 + steps + (0 if live is None else arm.period),
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            **_checkpointing(settings.checkpointing),
            bf16=settings.precision == "bfloat16",
            use_cpu=not gpu,
            dataloader_pin_memory=gpu,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=settings.seed + number,
        )
        extra = {} if arm.coreset is None else {"coreset": arm.coreset}
        trainer: Any = None
        try:
            trainer = TRAINERS[arm.kind](
                model=model, args=args, train_dataset=rows, data_collator=_collate, callbacks=[clock], **extra
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        finally:
            clock.close()
            model.zero_grad(set_to_none=True)
            if vars(model).pop("_original_forward", None) is not None:
                vars(model).pop("forward")  # Accelerate wraps it for autocast, once more in every run
        record = _record(Path(folder), steps)
        tokens, labels, cells = (
            statistics.mean(float(count[part]) for count in trainer.counts[1 : 1 + steps]) for part in range(3)
        )
    del trainer
    gc.collect()
    seconds = [statistics.mean(clock.seconds[start : start + arm.period]) for start in range(0, steps, arm.period)]
    peaks = [live.peak_bytes] if live is not None else clock.peaks[1:] if gpu and memory else []
    phases = record.pop("memory_mb", [])
    if gpu and memory:  # the recorder of a corebatch run starts the allocator's peak anew in every phase
        peaks += [int(mb * 2**20) for mb in phases]
    return Run(
        seconds=statistics.median(seconds),
        tokens=tokens,
        labels=labels,
        cells=cells,
        start_bytes=clock.start_bytes if memory else None,
        peak_bytes=max(peaks) if peaks else None,
        **record,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """Of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return round(statistics.mean(known), 4) if known else None


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """As TrainingArguments spells it: transformers 5 renamed the two keys."""
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if wanted else {}


def _record(folder: Path, steps: int) -> dict[str, Any]:
    """What `selection.jsonl` tells of the measured steps; nothing for a plain run."""
    path = folder / LOG
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    measured = lines[1 : 1 + steps]
    phases = [line["ms"] for line in measured]
    total = sum(sum(ms.values()) for ms in phases)
    return {
        "scored": statistics.mean(line["tokens_scored"] for line in measured),
        "score_share": sum(ms.get("score", 0.0) for ms in phases) / total,
        "overhead_share": sum(ms.get(phase, 0.0) for ms in phases for phase in OVERHEAD) / total,
        "padding_scored": _mean(line.get("padding_scored") for line in measured),
        "mfu": _mean(line.get("mfu") for line in measured),
        "reuse_mb": lines[-1].get("reuse_mb"),
        "memory_mb": [mb for line in measured for mb in line["memory_mb"].values()],
    }


# ---- all arms, in turn -----------------------------------------------------------------------------------------------


def bench_step(made: Plan, say: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """Runs all arms, `rounds` times in turn; one record an arm and ratio, with settings, hardware, versions, commit.

    A corebatch arm that the model does not go with is left out in the first round.

    Args:
        say: takes a line of progress; names the error of an arm that is left out, as a new note of the plan does.
    """
    settings, arms = made.settings, list(made.arms)
    model = build_model(
        settings.model,
        adapter=settings.adapter,
        precision=settings.precision,
        random_weights=settings.random_weights,
        seed=settings.seed,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    steps = max(1 + arm.steps(settings.steps) + arm.period for arm in arms)
    vocabulary = model_config(settings.model).vocab_size
    rows = _Rows(made.shapes, steps * settings.large, vocabulary, settings.seed)  # one epoch of the longest arm
    runs: dict[Arm, list[Run]] = {arm: [] for arm in arms}
    for number in range(settings.rounds):
        began = time.perf_counter()
        turn = number % len(arms)
        for arm in arms[turn:] + arms[:turn]:
            try:
                runs[arm].append(run_arm(arm, model, rows, settings, number=number, memory=number == 0))
            except InputError as error:
                if number > 0 or arm.kind != COREBATCH:
                    raise
                made.notes.append(f"left out: {arm.name} at 1/{arm.ratio} ({type(error).__name__}: {error})")
                say(made.notes[-1])
                del runs[arm]
        arms = list(runs)
        say(f"round {number + 1} of {settings.rounds}: {time.perf_counter() - began:.0f} s")
    common = {
        "kind": "step",
        "model": settings.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_numbers": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "weights": "random" if settings.random_weights else "the model's",
        "adapter": settings.adapter,
        "precision": settings.precision,
        "checkpointing": settings.checkpointing,
        "large": settings.large,
        "micro_batch": settings.micro_batch,
        "lengths": str(settings.lengths) if settings.lengths is not None else f"{made.shapes[0].tokens}, fixed",
        "max_length": settings.max_length,
        "length_mean": round(statistics.mean(shape.tokens for shape in rows.shapes), 1),
        "length_max": max(shape.tokens for shape in rows.shapes),
        "trained_share": round(
            sum(shape.trained for shape in rows.shapes) / sum(shape.tokens for shape in rows.shapes), 3
        ),
        "rounds": settings.rounds,
        "seed": settings.seed,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        **provenance(),
    }
    return [{**common, **measured} for measured in summaries(runs, settings)]


def summaries(runs: Mapping[Arm, Sequence[Run]], settings: StepSettings) -> list[dict[str, Any]]:
    """A record an arm: medians over the rounds, with the least and the greatest, and its ratios to the plain arms."""
    plain = {arm.kind: rounds for arm, rounds in runs.items() if arm.ratio == 1}
    small = {arm.ratio: rounds for arm, rounds in runs.items() if arm.kind == SMALL}
    found = []
    for arm, rounds in runs.items():
        first = rounds[0]
        peaks = (first.peak_bytes, small[arm.ratio][0].peak_bytes) if arm.ratio in small else (None, None)
        told = ("score_share", "overhead_share", "padding_scored", "mfu")
        found.append(
            {
                "arm": arm.name,
                "ratio": arm.ratio,
                "small": settings.large // arm.ratio,
                "coreset": None if arm.coreset is None else arm.coreset.to_dict(),
                "steps": arm.steps(settings.steps),
                **_spread("step_ms", [1000 * run.seconds for run in rounds]),
                **_spread("to_accumulation", _ratios(rounds, plain[ACCUMULATION])),
                **_spread("to_grouped", _ratios(rounds, plain[GROUPED])),
                **_spread("speedup", _ratios(plain[ACCUMULATION], rounds)),
                "tokens_trained": round(statistics.mean(run.tokens for run in rounds), 1),
                "labels_trained": round(statistics.mean(run.labels for run in rounds), 1),
                "tokens_scored": round(statistics.mean(run.scored for run in rounds), 1),
                "padding": round(1 - sum(run.tokens for run in rounds) / sum(run.cells for run in rounds), 4),
                **{key: _mean(getattr(run, key) for run in rounds) for key in told},
                "reuse_mb": first.reuse_mb,
                "start_bytes": first.start_bytes,
                "peak_bytes": first.peak_bytes,
                "memory_to_small": round(peaks[0] / peaks[1], 4) if peaks[0] and peaks[1] else None,
            }
        )
    return found


def _ratios(over: Sequence[Run], under: Sequence[Run]) -> list[float]:
    """Of step times, within each round."""
    return [one.seconds / other.seconds for one, other in zip(over, under, strict=True)]


def _spread(key: str, values: Sequence[float]) -> dict[str, float]:
    spread = {key: statistics.median(values), f"{key}_min": min(values), f"{key}_max": max(values)}
    return {name: round(value, 4) for name, value in spread.items()}


# ---- what is shown ---------------------------------------------------------------------------------------------------


def table_rows(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The records of one setting as rows of a table."""
    return [
        {
            "M of N": f"{line['small']} of {line['large']}",
            "arm": line["arm"],
            "step, ms": f"{line['step_ms']:,.0f}",
            "time to accumulation": _span(line, "to_accumulation"),
            "to grouped": _span(line, "to_grouped"),
            "speed-up": _span(line, "speedup") + "x",
            "memory, MB": "-" if line["peak_bytes"] is None else f"{line['peak_bytes'] / 2**20:,.1f}",
            "to small batch": "-" if line["memory_to_small"] is None else f"{line['memory_to_small']:.2f}",
            "scoring": _percent(line["score_share"]),
            "overhead": _percent(line["overhead_share"]),
            "padding": _percent(line["padding"]),
            "reuse, MB": "-" if line["reuse_mb"] is None else f"{line['reuse_mb']:,.1f}",
        }
        for line in lines
    ]


def _span(line: Mapping[str, Any], key: str) -> str:
    return f"{line[key]:.2f} ({line[f'{key}_min']:.2f} to {line[f'{key}_max']:.2f})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def setting_name(line: Mapping[str, Any]) -> str:
    """Model, adapter, precision, checkpointing, in a line."""
    adapter = "LoRA" if line["adapter"] == "lora" else "all weights"
    recomputed = "with checkpointing" if line["checkpointing"] else "without checkpointing"
    return f"{line['model']}, {adapter}, {line['precision']}, {recomputed}"


def target_rows(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Each target, and what the recommended arm and the fastest one that scores reached, by medians. An arm that does
    not score is no proof that scoring is cheap. A target that these settings do not measure says so."""
    rows = []
    for (adapter, ratio), wanted in TARGETS.items():
        here = [
            line
            for line in lines
            if (line["adapter"], line["ratio"], line["large"]) == (adapter, ratio, TARGET_LARGE)
            and line["checkpointing"]
            and line["tokens_scored"] > 0
        ]
        recommended = next((line for line in here if line["arm"] == RECOMMENDED), None)
        fastest = max(here, key=lambda line: line["speedup"], default=None)
        rows.append(
            {
                "target": f"{'LoRA' if adapter == 'lora' else 'all weights'}, {TARGET_LARGE // ratio} of "
                f"{TARGET_LARGE}, checkpointing: at least {wanted}x",
                f"{RECOMMENDED} (the default)": _reached(recommended, wanted),
                "fastest arm that scores": _reached(fastest, wanted)
                + (f", {fastest['arm']}" if fastest is not None else ""),
            }
        )
    return rows


def _reached(line: Mapping[str, Any] | None, wanted: float) -> str:
    if line is None:
        return "not measured here"
    return f"{_span(line, 'speedup')}x, {'reached' if line['speedup'] >= wanted else 'not reached'}"


HOW = """Every arm trains through the real trainer on the same rows (random token ids), in turn; a time runs from the
end of a step to the end of the next, loading and scoring included. Ratios are taken within a round: the median over
rounds, with the least and the greatest. "to grouped" compares with accumulation whose rows are sorted by length within
the large batch: sorting alone saves padding. Memory is
{memory};
its ratio is to the plain small batch on the same micro-batch. Scoring is a share of the step; overhead is the share of
loading, exchange, selection and repacking, which are neither forward nor backward. Padding is a share of what is
trained."""
MEMORY = {
    "cuda": "the allocator's peak over a step",
    "cpu": "the peak of live tensor bytes over one more step (over four, for an arm that scores every four), weights\n"
    "and optimizer state included",
}


def report_text(lines: Sequence[Mapping[str, Any]], command: str, notes: Sequence[str] = ()) -> str:
    """A dated page in Markdown: how, where, a table for each setting, and the targets."""
    first = lines[0]
    machine, versions = first["hardware"], first["versions"]
    parts = [
        f"# What a step costs, {first['time'][:10]}",
        HOW.format(memory=MEMORY[first["device"]]),
        "\n".join(
            [
                f"- command: `{command}`",
                f"- commit: {first['commit'] or 'unknown'} (+ is a tree with changes)",
                f"- hardware: {machine['gpu'] or 'no GPU'}; {machine['machine']}, {machine['cpu_cores']} cores, "
                f"{machine['torch_threads']} threads, {machine['memory_gb']} GB",
                f"- versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
                f"- rows: lengths {first['lengths']}, at most {first['max_length']} tokens, mean "
                f"{first['length_mean']}, {_percent(first['trained_share'])} of tokens trained; micro-batch "
                f"{first['micro_batch']}; {first['rounds']} rounds; seed {first['seed']}",
                *(f"- {note}" for note in notes),
            ]
        ),
    ]
    for name in dict.fromkeys(map(setting_name, lines)):
        here = [line for line in lines if setting_name(line) == name]
        numbers = f"{here[0]['parameters']:,} numbers, {here[0]['trained_numbers']:,} of them trained."
        parts += [f"## {name}", numbers, markdown(table_rows(here))]
    parts += ["## Targets", markdown(target_rows(lines))]
    return "\n\n".join(parts) + "\n"


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of equal keys as a table."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def write_report(text: str, path: Path) -> None:
    """Written under a temporary name and moved; an earlier report keeps its text under a numbered name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    if path.exists():
        number = 1
        while (old := path.with_name(f"{path.stem}.old-{number}{path.suffix}")).exists():
            number += 1
        path.rename(old)
    part.replace(path)
