"""The records of a run: what is read from its folder, before anything is added up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corebatch.intervals import wilson_interval
from corebatch.step_line import StepLine

PHASES = ("load", "score", "exchange", "select", "repack", "track", "train", "optimizer")
"""The phases of a step in the order in which they happen; others come after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Exact answers on held-out items, with the ends of an interval (shares between 0 and 1); where none is given,
    Wilson's (1927) at 95 %."""

    correct: int
    total: int
    low: float = math.nan
    high: float = math.nan

    def __post_init__(self) -> None:
        if self.correct > self.total:
            raise ValueError(f"correct should be at most total. Found {self.correct} of {self.total}.")
        if math.isnan(self.low + self.high):
            low, high = wilson_interval(self.correct, self.total) if self.total else (0.0, 1.0)
            object.__setattr__(self, "low", low)
            object.__setattr__(self, "high", high)
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"low <= high should be shares from 0 to 1. Found {self.low} and {self.high}.")

    @property
    def share(self) -> float | None:
        """Correct answers as a share of the items; None without items."""
        return self.correct / self.total if self.total else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """One evaluation: by source, and over all sources."""

    per_source: Mapping[str, Accuracy] = field(default_factory=dict)
    overall: Accuracy | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A part of an example: of one role, and trained, not trained, or None where that is not known."""

    role: str = ""
    text: str
    trained: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One example of the train set.

    Attributes:
        expected: how often a random choice of as many rows would have chosen it, on average.
        weight: mean of the weights that it was chosen with; None if it never was.
        text: its beginning and end; None if it could not be read.
        turns: the same by role; empty in older records.
    """

    id: int
    source: str = "unknown"
    drawn: int
    chosen: int
    expected: float = 0.0
    weight: float | None
    text: str | None
    turns: tuple[Turn, ...] = ()


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
    drawn: int = field(metadata={"key": "examples_drawn"})
    in_data: int | None = field(metadata={"key": "examples_in_data"})
    draws: tuple[int, ...] = (0, 0)
    never_chosen: int
    never_chosen_by_chance: float | None
    ranked_by: str | None
    most: tuple[Example, ...] = ()
    least: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakFlops:
    """What a device could do (FLOP/s), and how that is known."""

    value: float | None = None
    how: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NextCommand:
    """A command that goes on from the run, and what it does."""

    what: str
    command: str


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
        commands: those that go on from the run; a demo leaves some.
        notes: what was missing, unfinished or left out, in sentences for the reader.
    """

    folder: Path
    steps: tuple[StepLine, ...]
    info: Mapping[str, Any] = field(default_factory=dict)
    eval_losses: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    examples: Examples | None = None
    before: Evaluated | None = None
    after: Evaluated | None = None
    commands: tuple[NextCommand, ...] = ()
    notes: tuple[str, ...] = ()
