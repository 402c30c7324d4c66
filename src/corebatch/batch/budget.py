"""How many rows a step trains, over a run: the configured number, or one that grows.

    M_0    rows of a step as configured: micro-batch x gradient accumulation x ranks
    M_t    M_0 <= M_t <= most M_0, in whole micro-batches, never fewer than before

    ramp        M_t = M_0 (1 + (most - 1) min(1, d / until)), d the share of the run's rows that came before
    noise       M_t = times B, with the simple noise scale B = tr Sigma / |G|^2 of McCandlish et al. (2018, arXiv
                1812.06162), at most twice as many as before: a batch that is warmed up as its critical size grows
                (Merrill et al. 2025, arXiv 2505.23971, which measures that size by branches of the run)
    adadagrad   the norm test of AdAdaGrad (Lau, Liu and Kolar 2024, arXiv 2402.11215, section 3; Byrd et al. 2012):
                where tr Sigma / M > eta^2 |g|^2, with g the mean gradient of the M rows, M_t = tr Sigma / (eta^2 |g|^2)

|g|^2 has the noise of its rows in it, |G|^2 + tr Sigma / M in the mean, so that one test multiplies M by 1 / eta^2 at
most, and tests end at M = B (1 / eta^2 - 1). A run draws as many rows as it would without a budget, in fewer steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from corebatch.errors import CheckpointError, ConfigError
from corebatch.noise import Noise
from corebatch.options import build, check_count, is_number

WHAT = "coreset.budget"
CONSTANT = "constant"
RATES = ("kept", "sqrt")


@dataclass(frozen=True, kw_only=True)
class Budget(ABC):
    """A batch that grows.

    Attributes:
        most: M_t over M_0, at most.
        learning_rate: "kept": as the schedule has it; "sqrt": times sqrt(M_t / M_0), the rule for Adam.
    """

    name: ClassVar[str]
    most: float = 8.0
    learning_rate: str = "kept"

    def __post_init__(self) -> None:
        self._check("most", self.most, least=1)
        if self.learning_rate not in RATES:
            raise ConfigError(f"{self._key('learning_rate')} should be kept or sqrt. Found {self.learning_rate!r}.")

    @abstractmethod
    def rows(self, first: int, before: int, done: float, noise: Noise | None) -> float:
        """M_t as the rule has it, before it is rounded up to whole micro-batches.

        Args:
            first: M_0.
            before: M of the step before.
            done: the share of the run's rows that came before, in [0, 1).
            noise: of the gradient, smoothed over steps; None before it is known.
        """

    def plain(self) -> str | dict[str, Any]:
        """As a config file has it, in its shortest form."""
        options = {each.name: getattr(self, each.name) for each in fields(self)}
        given = {name: value for name, value in options.items() if value != getattr(type(self), name)}
        return {self.name: given} if given else self.name

    def _key(self, option: str) -> str:
        return f"{WHAT}.{self.name}.{option}"

    def _check(self, option: str, value: Any, *, least: float = 0, most: float = math.inf) -> None:
        """Raises ConfigError for what is no number above `least` and below `most`."""
        if not is_number(value) or not least < value < most:
            below = f" and below {most:g}" if most < math.inf else ""
            raise ConfigError(f"{self._key(option)} should be a number above {least:g}{below}. Found {value!r}.")


@dataclass(frozen=True, kw_only=True)
class Ramp(Budget):
    """Linear in the rows that were drawn. `until`: the share of the run's rows at which M_t is the most."""

    name = "ramp"
    until: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.until != 1:
            self._check("until", self.until, most=1)

    def rows(self, first: int, before: int, done: float, noise: Noise | None) -> float:
        return first * (1 + (self.most - 1) * min(1.0, done / self.until))


@dataclass(frozen=True, kw_only=True)
class Measured(Budget):
    """By the noise of the gradient. `every`: steps from one look at it to the next."""

    every: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self._key("every"), self.every)


@dataclass(frozen=True, kw_only=True)
class NoiseScale(Measured):
    """So many times the noise scale."""

    name = "noise"
    times: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("times", self.times)

    def rows(self, first: int, before: int, done: float, noise: Noise | None) -> float:
        return before if noise is None else min(self.times * noise.scale, 2.0 * before)


@dataclass(frozen=True, kw_only=True)
class NormTest(Measured):
    """AdAdaGrad's. `eta`: how large the noise of a batch's gradient may be, over its length."""

    name = "adadagrad"
    eta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("eta", self.eta, most=1)

    def rows(self, first: int, before: int, done: float, noise: Noise | None) -> float:
        if noise is None:
            return before
        trace = max(0.0, noise.trace)
        squared = max(0.0, noise.signal) + trace / before  # |g|^2; a signal below 0 is none
        return trace / (self.eta**2 * squared) if trace else before


BUDGETS: dict[str, type[Budget]] = {method.name: method for method in (Ramp, NoiseScale, NormTest)}


def make_budget(value: Any) -> Budget | None:
    """From the key `coreset.budget`: a name, a mapping of it to its options, an instance, or None for "constant".

    Raises:
        ConfigError: the name or an option is unknown, or an option's value is out of range.
    """
    if value is None or value == CONSTANT:
        return None
    options: Any = None
    if isinstance(value, Mapping):
        if len(value) != 1 or not isinstance(next(iter(value.values())), Mapping | None):
            raise ConfigError(f"{WHAT} should map one of {', '.join(BUDGETS)} to its options. Found {value!r}.")
        ((value, options),) = value.items()
    if value == CONSTANT:
        if options:
            raise ConfigError(f"{WHAT} constant takes no options. Found {options!r}.")
        return None
    known: Any = {CONSTANT: Budget, **BUDGETS}  # named in messages
    return build(WHAT, value, options, known, Budget)


class RunBudget:
    """How many of the loader's batches each step of a run takes; the same on every rank. A batch of the loader is the
    pool of one micro-batch.

    Args:
        method: says M_t.
        accumulation: micro-batches of a step as configured, on each rank.
        rows: of a micro-batch, over all ranks.

    Attributes:
        length: batches of an epoch, on each rank.
        steps_of_run: as configured, of M_0 rows.
        micro_batches: of a step now: M_t over `rows`.
        latest: the same of the step at work, which has fewer where an epoch or the run ends.
        updates: optimizer steps that were made.
        skip: batches that a resumed epoch has to pass over before its first step.
    """

    def __init__(self, method: Budget, *, accumulation: int, rows: int) -> None:
        self.method, self.accumulation, self._rows = method, accumulation, rows
        self.length = self.steps_of_run = self.updates = self.latest = self.skip = 0
        self.micro_batches = accumulation
        self._epoch = self._drawn = self._steps = 0
        self._resumed = False

    def next(self, noise: Noise | None) -> int:
        """Batches that the next step takes; 0 where the epoch's are all drawn."""
        left = min(self.length - self._drawn, self._total - self._before)
        if left <= 0:
            return 0
        if not isinstance(self.method, Measured) or self.updates % self.method.every == 0:
            first, before = self.accumulation * self._rows, self.micro_batches * self._rows
            wanted = self.method.rows(first, before, self.done, noise)
            self.micro_batches = max(self.micro_batches, min(math.ceil(wanted / self._rows - 1e-9), self._most))
        self.latest = min(self.micro_batches, left)
        return self.latest

    def pieces(self, given: int) -> int:
        """Micro-batches that the step's rows are cut into. The Trainer's loop steps after `accumulation` of them, or
        with the last ones of an epoch in which no step took more."""
        short = self.length % self.accumulation or self.accumulation
        return max(given, short if self._steps == self._steps_of_epoch - 1 else self.accumulation)

    def advance(self, updates: int) -> int:
        """A step was made. Returns how many configured steps further the run is.

        Args:
            updates: optimizer steps that were made.
        """
        before = self.position
        self._drawn, self._steps, self.updates = self._drawn + self.latest, self._steps + 1, updates
        return self.position - before

    def begin_epoch(self) -> None:
        """An epoch begins, or is gone on with."""
        if self._drawn and not (self._resumed and self._drawn < self.length):
            self._epoch, self._drawn, self._steps, self.skip = self._epoch + 1, 0, 0, 0
        self._resumed = False

    @property
    def position(self) -> int:
        """Configured steps whose rows were drawn."""
        whole = self._drawn >= self.length
        return self._epoch * self._steps_of_epoch + (
            self._steps_of_epoch if whole else self._drawn // self.accumulation
        )

    @property
    def epochs(self) -> float:
        """As the Trainer counts them."""
        return self._epoch + self._drawn / self.length

    @property
    def done(self) -> float:
        """The share of the run's rows that were drawn."""
        return self._before / self._total

    @property
    def rate(self) -> float:
        """By what the learning rate of the step at work is multiplied."""
        return math.sqrt(max(1.0, self.latest / self.accumulation)) if self.method.learning_rate == "sqrt" else 1.0

    @property
    def _before(self) -> int:
        return self._epoch * self.length + self._drawn

    @property
    def _steps_of_epoch(self) -> int:
        return math.ceil(self.length / self.accumulation)

    @property
    def _total(self) -> int:
        """Batches that a rank draws in the run."""
        epochs, steps = divmod(self.steps_of_run, self._steps_of_epoch)
        return epochs * self.length + min(steps * self.accumulation, self.length)

    @property
    def _most(self) -> int:
        return int(self.method.most * self.accumulation + 1e-9)

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint; in rows, since micro-batches may be others in a run that goes on."""
        rows = (self._drawn * self._rows, self.micro_batches * self._rows)
        return {"counts": torch.tensor([self._epoch, self._steps, self.updates, *rows])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint. Raises CheckpointError: its micro-batches had other rows, which do not come out even."""
        self._epoch, self._steps, self.updates, drawn, latest = state["counts"].tolist()
        if drawn % self._rows or latest % self._rows:
            raise CheckpointError(
                f"{WHAT} {self.method.name} goes on in whole micro-batches. Found that the checkpoint has drawn "
                f"{drawn:,} rows of its epoch and {latest:,} a step, and that micro-batches have {self._rows} now: go "
                "on with the per_device_train_batch_size that it was written with."
            )
        self._drawn, self.micro_batches = drawn // self._rows, latest // self._rows
        self._resumed, self.skip = True, self._drawn % self.accumulation
