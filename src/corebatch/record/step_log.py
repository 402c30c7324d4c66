"""`selection.jsonl` and `chosen.jsonl`: a line a step each, in the order of the steps."""

from __future__ import annotations

import json
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from corebatch.errors import CheckpointError
from corebatch.files import sync, write_text
from corebatch.record.example_counts import EXAMPLES, ROWS
from corebatch.record.phases import Phases
from corebatch.record.saving import log_failed
from corebatch.step_line import StepLine

LOG = "selection.jsonl"


class TimedLine:
    """The line of one step, whole once its phases are timed.

    Args:
        values: what is known at the end of the step.
        phases: of the step.
        at_peak: how many seconds the step's model FLOPs take the devices of all ranks at their peak; None if unknown.
        rows: the step's line of `chosen.jsonl`: which examples were chosen and which passed over.
    """

    def __init__(
        self, values: dict[str, Any], phases: Phases, at_peak: float | None, rows: dict[str, Any] | None = None
    ) -> None:
        self._values, self._phases, self._at_peak = values, phases, at_peak
        self.rows = rows if rows is not None else {"step": values["step"]}

    def timed(self, wait: bool = False) -> bool:
        """Whether all phases are timed; see `Phases.resolve`."""
        return self._phases.resolve(wait)

    def line(self) -> StepLine:
        """The line, with those phases that are timed by now."""
        ms, memory_mb = self._phases.ms, self._phases.memory_mb
        seconds = sum(ms.values()) / 1000
        mfu = None
        if self._at_peak is not None and seconds > 0 and self._phases.resolved:
            mfu = float(f"{self._at_peak / seconds:.4g}")
            mfu = mfu if mfu <= 1 else None  # the peak was measured while the machine was busy with something else
        return StepLine(
            **self._values,
            mfu=mfu,
            ms={key: round(value, 3) for key, value in ms.items()},
            memory_mb={key: round(value, 1) for key, value in memory_mb.items()},
        )

    def to_dict(self) -> dict[str, Any]:
        """What is written: what was known at the end of the step, and what was measured."""
        return self.line().to_dict({*self._values, "mfu", "ms", "memory_mb"})


class StepLog:
    """Writes lines in the order of the steps, each as soon as it is timed: on CPU at once, on a GPU up to a step late.

    A line that cannot be written ends no step by itself, since other ranks would wait for this one: `failure` keeps the
    error until all ranks can be told, and nothing is written after it. `path`: of `selection.jsonl`, beside which
    `chosen.jsonl` lies; None on the ranks that write nothing.
    """

    held: ClassVar[weakref.WeakSet[StepLog]] = weakref.WeakSet()
    """Those of this process that may hold lines back."""

    def __init__(self, path: Path | None) -> None:
        self.path = None if path is None else path.resolve()
        self.failure: CheckpointError | None = None
        self._waiting: deque[TimedLine] = deque()
        self.held.add(self)

    def add(self, line: TimedLine) -> None:
        """Writes the line, or holds it back until it is timed."""
        self._waiting.append(line)
        self._write(lambda line: line.timed())

    def flush(self) -> None:
        """Writes all lines, waiting for the device. Where it has failed, lines go without what it did not finish."""
        try:
            self._write(lambda line: line.timed(wait=True))
        except RuntimeError:  # of the device; whoever uses it next is told
            self._write(lambda line: True)

    def sync(self) -> None:
        """Returns once what was written has reached the disk."""
        for path in self.paths:
            if path.exists() and self.failure is None:
                try:
                    sync(path)
                except OSError as error:
                    self.failure = log_failed(error, path)

    @property
    def paths(self) -> list[Path]:
        """Of the two files; none on the ranks that write nothing."""
        return [] if self.path is None else [self.path, self.path.with_name(ROWS)]

    def _write(self, ready: Callable[[TimedLine], bool]) -> None:
        lines = []
        try:
            while self._waiting and ready(self._waiting[0]):
                lines.append(self._waiting.popleft())
        finally:
            if lines and self.path is not None:
                texts = ([json.dumps(line.to_dict()) for line in lines], [_compact(line.rows) for line in lines])
                for path, written in zip(self.paths, texts, strict=True):
                    self._append(path, written)

    def _append(self, path: Path, lines: list[str]) -> None:
        if self.failure is not None:
            return
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in lines)
        except OSError as error:
            self.failure = log_failed(error, path)


def start_log(output_dir: Path, steps: int) -> None:
    """Makes `selection.jsonl` and `chosen.jsonl` end with step `steps`: a resumed run goes on there. A new run (0
    steps) keeps the old files under other names. `examples.json`, which is written when training ends, goes. Raises
    CheckpointError: `selection.jsonl` lacks lines up to that step, or `chosen.jsonl` has a hole. A run of an older
    version has no `chosen.jsonl`: it begins here."""
    path, rows = output_dir / LOG, output_dir / ROWS
    for log in list(StepLog.held):  # of a run in this process that ended by an error
        if log.path == path.resolve():
            log.flush()
    if steps == 0:
        number = 1
        while any((output_dir / f"{old.stem}.old-{number}.jsonl").exists() for old in (path, rows)):
            number += 1
        for old in (path, rows):
            if old.exists():
                old.rename(output_dir / f"{old.stem}.old-{number}.jsonl")
    else:
        kept = _lines_up_to(path, steps)
        if len(kept) != steps:
            raise CheckpointError(
                f"{path} should have a line for each of the {steps} steps of the checkpoint. Found {len(kept)}."
            )
        kept_rows = _lines_up_to(rows, steps)
        first, last = (json.loads(kept_rows[i])["step"] if kept_rows else steps for i in (0, -1))
        if last != steps or len(kept_rows) not in (0, last - first + 1):
            raise CheckpointError(
                f"{rows} should have a line for each step up to {steps}, the checkpoint's. Found {len(kept_rows)} "
                f"lines, of steps {first} to {last}."
            )
        write_text(path, "".join(line + "\n" for line in kept))
        if rows.exists():
            write_text(rows, "".join(line + "\n" for line in kept_rows))
    (output_dir / EXAMPLES).unlink(missing_ok=True)


def _lines_up_to(path: Path, steps: int) -> list[str]:
    """The whole lines of a file up to a step's; none if there is no such file."""
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] > steps:
                break
        except (ValueError, KeyError, TypeError):
            break  # the line that a killed run did not finish
        kept.append(line)
    return kept


def _compact(values: dict[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"))
