"""What a comparison left behind: its plan, its runs, and what is to be said about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

MEANS = ("token", "example", "source")
"""A held-out loss is a mean over tokens, over the examples' means, or over the sources' means. They disagree."""

BY_SHARES = ("claimed", "kept", "target")
"""Means of the sources' means with shares of their own: the objective's where it is none of the three; of the sources
that are to be kept (`compare.kept`); of all others."""

AXES = ("steps", "tokens", "flops", "seconds")
"""What a curve is drawn against, and what a loss may cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedArm:
    """What the plan grants an arm.

    Attributes:
        name: METHOD@BUDGET.
        budget: "steps", "flops" or "wall_clock".
        baseline: one of those that the others have to beat.
        steps: optimizer steps, fixed before any run.
        preparation_seconds: what precedes its first step: choosing its rows.
        positions: of its run, padding included, scored and trained, as they were counted beforehand; None in plans that
            were made before they were counted.
        positions_spread: standard deviation of a step's, as a share of their mean.
        seconds_error: standard error of its seconds a step over the reference's, as a share; None: not known.
        seconds_per_step, flops_per_step: in the first epoch and in later ones, or one number for all; may be empty.
        edge_of_grid: the learning rate is the least or the greatest that was tried.
        objective: what its update estimates, in words; empty in plans that were made before there was a choice.
        subset: the settings by which its rows are chosen; None where it trains on all.
    """

    name: str = field(metadata={"key": "arm"})
    method: str = ""
    budget: str = ""
    title: str = ""
    baseline: bool = False
    rows_drawn_per_step: int
    rows_trained_per_step: int
    steps: int
    preparation_seconds: float = 0.0
    positions: float | None = None
    positions_spread: float = 0.0
    seconds_error: float | None = None
    seconds_per_step: tuple[float, ...] = ()
    flops_per_step: tuple[float, ...] = ()
    learning_rate: float | None = None
    adam_beta2: float | None = None
    edge_of_grid: bool = False
    objective: str = ""
    coreset: Mapping[str, Any] = field(default_factory=dict)
    subset: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        method, _, budget = self.name.partition("@")
        for key, value in (("method", method), ("budget", budget), ("title", self.name)):
            object.__setattr__(self, key, getattr(self, key) or value)

    @property
    def plain(self) -> bool:
        """Whether all rows that are drawn are trained."""
        return self.rows_drawn_per_step == self.rows_trained_per_step

    @property
    def drawing(self) -> str:
        """Which rows come, as text: arms that agree in it draw the same rows with the same seed. Shares of sources may
        go by the steps of the run, so that its length is a part of it, and rows by what they have taught, so that the
        arm draws for itself."""
        given, parts = self.coreset.get("sampling"), list[Any]()
        if given is not None:
            parts += [given, self.rows_drawn_per_step, self.steps]
            parts += [self.name] if isinstance(given, Mapping) and given.get("learnt") else []
        by_length = self.coreset.get("by_length")
        parts += [] if by_length is None else [by_length, self.rows_drawn_per_step]
        parts += [] if self.subset is None else [self.subset]
        return json.dumps(parts, sort_keys=True) if parts else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What `corebatch advise` expected of an arm.

    Attributes:
        lever: what it calls what the arm does.
        arm, against: names of arms; `against` is the config as it came in.
        of: what the factor is of, as "seconds a step".
        factor: of the arm over the other.
        low, high: its interval, or None.
    """

    lever: str
    arm: str
    against: str
    of: str
    factor: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonPlan:
    """`plan.json`: what was fixed before any run.

    Attributes:
        reference: the method whose steps and seconds set the budgets.
        seconds, flops: the budgets of the arms at equal wall-clock and at equal FLOPs.
        metric: the mean that the reference's objective is about, and that it is tested by first; empty in plans that
            were made before there was a choice.
        shares: of sources, by the name of each mean in BY_SHARES that runs were measured by.
        promises: what advice expected of arms, read before the first run; `without_arm`: levers that no arm pulls.
        quick: of `compare --quick`: its minutes, and the config's steps; empty of others.
        power: what its seeds will find, as `compare --plan` computed it before the first run; empty without.
    """

    reference: str = "coreset"
    seconds: float | None
    flops: float | None
    seeds: tuple[int, ...]
    arms: tuple[PlannedArm, ...]
    metric: str = ""
    shares: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    promises: tuple[Promise, ...] = ()
    without_arm: tuple[str, ...] = ()
    power: Mapping[str, Any] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    commit: str | None

    def arm(self, name: str) -> PlannedArm | None:
        """The arm of this name; None where the plan has none."""
        return next((arm for arm in self.arms if arm.name == name), None)

    @property
    def reference_arm(self) -> PlannedArm | None:
        """The reference at equal wall-clock, else its first arm; None where it is not among the arms."""
        named = self.arm(f"{self.reference}@wall_clock")
        return named or next((arm for arm in self.arms if arm.method == self.reference), None)

    @property
    def means(self) -> tuple[str, ...]:
        """By which held-out losses were measured, what the reference's objective is about first."""
        found = (*MEANS, *(mean for mean in BY_SHARES if mean in self.shares))
        return tuple(sorted(found, key=lambda mean: mean != self.metric)) if self.metric else found

    @property
    def baselines(self) -> tuple[PlannedArm, ...]:
        return tuple(arm for arm in self.arms if arm.baseline)


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Held-out losses (nats a token) by each mean and by source; what is not finite is None or left out."""

    token: float | None = None
    example: float | None = None
    source: float | None = None
    claimed: float | None = None
    kept: float | None = None
    target: float | None = None
    sources: Mapping[str, float] = field(default_factory=dict)

    @property
    def losses(self) -> dict[str, float]:
        """By mean, those that are known."""
        return {mean: loss for mean in (*MEANS, *BY_SHARES) if (loss := getattr(self, mean)) is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point(Losses):
    """Losses on a part of the held-out rows, and what was spent until then."""

    step: int
    tokens_trained: float | None = None
    flops: float | None = None
    seconds: float | None = None

    @property
    def spent(self) -> dict[str, float]:
        """By AXES, as far as it is known."""
        spent = {"steps": float(self.step), "tokens": self.tokens_trained}
        spent |= {"flops": self.flops, "seconds": self.seconds}
        return {axis: number for axis, number in spent.items() if number is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Final(Losses):
    """Losses on all held-out rows, and accuracies (shares).

    Attributes:
        task_sources: accuracies by source, of tasks that have several.
    """

    tasks: Mapping[str, float] = field(default_factory=dict)
    task_sources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A line of `runs.jsonl`: what was counted and measured in the run of an arm with a seed.

    Attributes:
        line: its number in the file, from 1.
        ok: whether it ended as it should; else `error` says what happened.
        planned: the allowance as the line states it: steps, rows_drawn, rows_trained.
        seconds: by the ratios that were measured side by side; comparable.
        wall_seconds: what it took; noisy, shown nowhere beside others.
        steps: of the configured rows. updates: optimizer steps that were made of them; fewer where the batch grows.
        positions: computed, padding included, scored and trained; None in lines of before they were counted.
        order: running hash of the drawn examples after every 64 of them.
        not_finite: losses that are NaN or infinite, by name.
    """

    line: int
    arm: str
    seed: int
    ok: bool
    error: str | None = None
    planned: Mapping[str, int] = field(default_factory=dict)
    steps: int | None = None
    updates: int | None = None
    rows_drawn: int | None = None
    rows_trained: int | None = None
    tokens_drawn: int | None = None
    tokens_trained: int | None = None
    tokens_scored: int | None = None
    positions: int | None = None
    flops: float | None = None
    seconds: float | None = None
    wall_seconds: float | None = None
    order: tuple[str, ...] = ()
    learning_rate: float | None = None
    adam_beta2: float | None = None
    curve: tuple[Point, ...] = ()
    final: Final | None = None
    not_finite: tuple[str, ...] = ()
    hardware: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    commit: str | None = None
    time: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Something that a reader must know about the run of an arm with a seed.

    Attributes:
        kind: one word, for machines.
        text: one sentence's worth, for people.
        excludes: the run is not comparable, and is left out of means and tests; else it is merely noted.
    """

    arm: str
    seed: int
    kind: str
    text: str
    excludes: bool = True


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison's folder as it was read, finished or not.

    Attributes:
        runs: one for each arm and seed that has a line, in the file's order.
        marks: all of them, in the plan's order of arms; a run without any is beyond doubt as far as lines can tell.
        notes: what was noticed in reading.
    """

    folder: Path
    plan: ComparisonPlan
    runs: tuple[Run, ...]
    marks: tuple[Mark, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def excluded(self) -> frozenset[tuple[str, int]]:
        """Arm and seed of what is left out of means and tests."""
        return frozenset((mark.arm, mark.seed) for mark in self.marks if mark.excludes)

    @property
    def missing(self) -> tuple[tuple[str, int], ...]:
        """Arm and seed of planned runs that have no line."""
        return tuple((mark.arm, mark.seed) for mark in self.marks if mark.kind == "missing")

    @cached_property
    def comparable(self) -> tuple[Run, ...]:
        """The runs that no mark excludes."""
        return tuple(run for run in self.runs if (run.arm, run.seed) not in self.excluded)

    def of(self, arm: str) -> dict[int, Run]:
        """The comparable runs of an arm by seed, ascending."""
        return {run.seed: run for run in sorted(self.comparable, key=lambda run: run.seed) if run.arm == arm}

    @property
    def sources(self) -> tuple[str, ...]:
        """The held-out sources, as they appear."""
        return tuple(dict.fromkeys(name for run in self.comparable if run.final for name in run.final.sources))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that any run was tested on, as they appear."""
        return tuple(dict.fromkeys(name for run in self.comparable if run.final for name in run.final.tasks))
