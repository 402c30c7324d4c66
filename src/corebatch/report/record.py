"""The records of a run: what is read from its folder, before anything is added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PHASES = ("load", "score", "exchange", "select", "repack", "track", "train", "optimizer")
"""The phases of a step in the order in which they happen; others come after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """A small batch's gradient against the large batch's: |difference| / |large|, cosine, |small| / |large|."""

    error: float | None
    cosine: float | None
    length: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientError:
    """What one step measured: of the chosen rows with their weights, and of as many random ones."""

    chosen: Distance
    random: Distance


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step: one line of `selection.jsonl`. What the line leaves out is None or empty.

    Attributes:
        step: optimizer step, counted from 1.
        pool_examples, chosen_examples: rows drawn, rows trained on, over all ranks.
        drawn, chosen: the same by source. weights: the sum of the chosen rows' weights by source.
        kept: sources that were kept whole in this step.
        pool_loss, chosen_loss: token means when the pool was scored, without weights (nats per token).
        train_loss: the loss that was minimised, with weights (nats per token).
        tokens_scored, tokens_trained: without padding; positions_scored, positions_trained: with it.
        labels_scored, labels_trained: tokens that count in the loss.
        weight_max, effective_sample_size: of the weights of the chosen rows.
        mfu: model FLOPs utilisation: FLOPs that the model needs over what the devices could do in the time (share).
        reuse_mb: what scoring kept for training, in megabytes.
        bytes_sent: between ranks, by what for; all ranks together. rows_moved: chosen rows that changed ranks.
        token_imbalance: how many more tokens the busiest rank trained than the mean (share of the mean).
        scoring: how the pool was scored in this step.
        gradient_error: where the step's gradients were compared.
        ms: milliseconds by phase. memory_mb: peak memory by phase, in megabytes.
        seconds: wall-clock time since the start of training, at the end of the step.
    """

    step: int
    pool_examples: int
    chosen_examples: int
    epoch: float | None = None
    drawn: Mapping[str, int] = field(default_factory=dict)
    chosen: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    pool_loss: float | None = None
    chosen_loss: float | None = None
    train_loss: float | None = None
    tokens_scored: int | None = None
    tokens_trained: int | None = None
    positions_scored: int | None = None
    positions_trained: int | None = None
    labels_scored: int | None = None
    labels_trained: int | None = None
    weight_max: float | None = None
    effective_sample_size: float | None = None
    mfu: float | None = None
    reuse_mb: float | None = None
    bytes_sent: Mapping[str, int] = field(default_factory=dict)
    rows_moved: int | None = None
    token_imbalance: float | None = None
    scoring: str | None = None
    gradient_error: GradientError | None = None
    ms: Mapping[str, float] = field(default_factory=dict)
    memory_mb: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Exact answers on held-out items, with the ends of an interval (shares between 0 and 1)."""

    correct: int
    total: int
    low: float
    high: float

    @property
    def share(self) -> float | None:
        """Correct answers as a share of the items; None without items."""
        return self.correct / self.total if self.total else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """One evaluation: by source, and over all sources."""

    per_source: Mapping[str, Accuracy]
    overall: Accuracy | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One example of the train set.

    Attributes:
        expected: how often a random choice of as many rows would have chosen it, on average.
        weight: mean of the weights that it was chosen with; None if it never was.
        text: its beginning and end; None if it could not be read.
    """

    id: int
    source: str
    drawn: int
    chosen: int
    expected: float
    weight: float | None
    text: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Which examples were chosen most and least often.

    Attributes:
        steps: how many were counted.
        drawn: how many different examples came. in_data: how many there are.
        draws: the least and the most that one of them came.
        never_chosen: of those that came; never_chosen_by_chance: how many a random choice would leave out, on average.
        ranked_by: "rate": how many standard deviations the number chosen is away from `expected`; "weight", where no
            example came twice; None where there is nothing to rank by.
    """

    steps: int
    drawn: int
    in_data: int | None
    draws: tuple[int, int]
    never_chosen: int
    never_chosen_by_chance: float | None
    ranked_by: str | None
    most: tuple[Example, ...]
    least: tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run folder as it was read.

    Attributes:
        folder: where it was read from.
        steps: at least one, by ascending step.
        info: the contents of `corebatch.json`, empty when the file is missing.
        eval_losses: by name of the logged value ("eval_loss", "eval_algebra_loss"): (step, loss) pairs.
        examples: those chosen most and least often, where training came to its end.
        before, after: evaluations of the model before and after training, where there are any.
        notes: what was missing, unfinished or left out, in sentences for the reader.
    """

    folder: Path
    steps: tuple[StepRecord, ...]
    info: Mapping[str, Any] = field(default_factory=dict)
    eval_losses: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    examples: Examples | None = None
    before: Evaluated | None = None
    after: Evaluated | None = None
    notes: tuple[str, ...] = ()
