"""What an evaluation found: counts and intervals by source, as a record, a file and table rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Protocol

from corebatch.errors import InputError
from corebatch.files import write_text
from corebatch.intervals import wilson_interval


@dataclass(frozen=True, kw_only=True)
class Count:
    """`correct` answers of `total`, at least one."""

    correct: int
    total: int

    def __post_init__(self) -> None:
        wilson_interval(self.correct, self.total)

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson, 95 %."""
        return wilson_interval(self.correct, self.total)

    def to_dict(self) -> dict[str, Any]:
        interval = list(self.interval)
        return {"correct": self.correct, "total": self.total, "accuracy": self.accuracy, "interval95": interval}


class Result(Protocol):
    """What every task's result can do."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of `rows`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""

    def rows(self) -> Sequence[tuple[str, ...]]:
        """Table rows."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One item's outcome, so that two evaluations can be compared item by item.

    Attributes:
        text: what the model wrote, or the option that it scored highest.
        scores: of all options, in their order, where there are options.
    """

    source: str
    prompt: str
    expected: str
    text: str
    correct: bool
    scores: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        scores = {} if self.scores is None else {"scores": list(self.scores)}
        return {key: value for key, value in vars(self).items() if key != "scores"} | scores


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Exact answers on a task; everything is counted from `answers`, which follow the task's order. `metrics`: what a
    task reports beside the share of right answers: a score from 0 to 1, or a count of its own."""

    task: str
    answers: tuple[Answer, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float | Count] = field(default_factory=dict)

    columns: ClassVar[tuple[str, ...]] = ("source", "correct", "accuracy", "95 % interval")

    def __post_init__(self) -> None:
        if not self.answers:
            raise InputError("`answers` should hold at least one answer. Found none.")

    @property
    def sources(self) -> dict[str, Count]:
        """Counts by source, in the order of their first item."""
        names = dict.fromkeys(answer.source for answer in self.answers)
        return {name: _count([answer for answer in self.answers if answer.source == name]) for name in names}

    @property
    def overall(self) -> Count:
        """Every item counts once."""
        return _count(self.answers)

    @property
    def source_mean(self) -> float:
        """Mean of the sources' accuracies: every source counts once, whatever its size."""
        counts = self.sources.values()
        return sum(count.accuracy for count in counts) / len(counts)

    def to_dict(self, *, answers: bool = True) -> dict[str, Any]:
        """Plain JSON; `answers=False` leaves the single answers out."""
        record: dict[str, Any] = {
            "task": self.task,
            "overall": self.overall.to_dict(),
            "source_mean": self.source_mean,
            "sources": {name: count.to_dict() for name, count in self.sources.items()},
            "metrics": {"accuracy": self.overall.accuracy}
            | {name: _number(value) for name, value in self.metrics.items()},
            "settings": dict(self.settings),
        }
        counts = {name: value.to_dict() for name, value in self.metrics.items() if isinstance(value, Count)}
        if counts:
            record["counts"] = counts
        if answers:
            record["answers"] = [answer.to_dict() for answer in self.answers]
        return record

    def write_json(self, path: str | PathLike[str]) -> None:
        """Writes `to_dict()`; a reader sees the old file or the whole new one, never a part."""
        write_json(self.to_dict(), path)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Table rows: source, correct/total, accuracy in %, its 95 % interval; then all items, the source mean, and the
        task's own metrics."""
        named = [*self.sources.items(), ("all items", self.overall)]
        rows = [(name, f"{c.correct}/{c.total}", _percent(c.accuracy), _range(c.interval)) for name, c in named]
        rows.append(("mean of sources", "", _percent(self.source_mean), ""))
        for name, value in self.metrics.items():
            if isinstance(value, Count):
                rows.append((name, f"{value.correct}/{value.total}", _percent(value.accuracy), _range(value.interval)))
            else:
                rows.append((name, "", _percent(value), ""))
        return rows


def accuracy_record(results: Sequence[EvaluationResult]) -> dict[str, Any]:
    """Counts by source and over all, as `evaluation.json` of a run has them for `before` and `after`.

    Several tasks are put together: their sources are then named `task: source`, and every item counts once.
    """
    several = len(results) > 1
    per_source = {
        (f"{result.task}: {name}" if several and name != result.task else name): count.to_dict()
        for result in results
        for name, count in result.sources.items()
    }
    overall = _count([answer for result in results for answer in result.answers])
    return {"per_source": per_source, "overall": overall.to_dict()}


def write_json(record: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Writes plain JSON; a reader sees the old file or the whole new one, never a part."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, json.dumps(record, ensure_ascii=False, indent=1) + "\n")


def comparison_rows(before: EvaluationResult, after: EvaluationResult) -> list[tuple[str, str, str, str]]:
    """Table rows of two evaluations of the same items: source, before, after, change in percentage points. Raises
    InputError: the two did not answer the same prompts in the same order."""
    if [answer.prompt for answer in before.answers] != [answer.prompt for answer in after.answers]:
        raise InputError("`before` and `after` should have answered the same prompts. Found different ones.")
    rows = [_change(name, count, after.sources[name]) for name, count in before.sources.items()]
    rows.append(_change("all items", before.overall, after.overall))
    old, new = before.source_mean, after.source_mean
    return [*rows, ("mean of sources", _percent(old), _percent(new), f"{100 * (new - old):+.1f}")]


def _change(name: str, before: Count, after: Count) -> tuple[str, str, str, str]:
    gain = f"{100 * (after.accuracy - before.accuracy):+.1f}"
    return name, f"{before.correct}/{before.total}", f"{after.correct}/{after.total}", gain


def _number(value: float | Count) -> float:
    return value.accuracy if isinstance(value, Count) else value


def _count(answers: Sequence[Answer]) -> Count:
    return Count(correct=sum(answer.correct for answer in answers), total=len(answers))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _range(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.0f} to {100 * interval[1]:.0f} %"
