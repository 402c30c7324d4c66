"""Reads a run folder: `selection.jsonl`, `corebatch.json`, `examples.json`, `trainer_state.json`, `evaluation.json`,
`next.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from corebatch.errors import DataError
from corebatch.report.fields import T, field_of, is_not_finite, json_object, parse, record
from corebatch.report.record import Evaluated, Examples, NextCommand, PeakFlops, RunRecord
from corebatch.step_line import StepLine

_LOSSES = ("pool_loss", "chosen_loss", "train_loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    examples: int | None
    share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Info:
    """What is read of `corebatch.json`; all of it may be missing."""

    coreset: Mapping[str, Any] | None
    training: Mapping[str, Any] | None
    sources: Mapping[str, _Source] = field(default_factory=dict)
    hardware: Mapping[str, Any] | None
    versions: Mapping[str, Any] | None
    dropped_rows: int | None
    peak_flops: PeakFlops | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Evaluation:
    before: Evaluated | None
    after: Evaluated | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Next:
    commands: tuple[NextCommand, ...] = ()


def read_run(folder: str | PathLike[str]) -> RunRecord:
    """Read what a run left behind.

    An unfinished last line of `selection.jsonl` (a killed run) is left out and noted. Raises DataError: there is no
    such folder, no complete step, or a file is broken; the message names the file and, for `selection.jsonl`, the line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"A run folder was expected. Found no folder at {folder}.")
    notes: list[str] = []
    steps = read_steps(folder / "selection.jsonl", notes)
    info = _read_info(folder / "corebatch.json", notes)
    coreset = info.get("coreset") or {}
    evaluation = _read_optional(_Evaluation, folder / "evaluation.json")
    return RunRecord(
        folder=folder,
        steps=steps,
        info=info,
        eval_losses=_read_eval_losses(folder, notes),
        examples=_read_examples(folder, steps[-1].step, notes, chooses=coreset.get("pool_factor") != 1),
        before=evaluation.before,
        after=evaluation.after,
        commands=_read_optional(_Next, folder / "next.json").commands,
        notes=tuple(notes),
    )


def read_steps(path: Path, notes: list[str] | None = None) -> tuple[StepLine, ...]:
    """The lines of a `selection.jsonl`; what was left out is added to `notes`. Errors as `read_run`."""
    notes = [] if notes is None else notes
    if not path.is_file():
        raise DataError(f"{path} is missing: the folder holds no corebatch run, or none that finished a step.")
    *lines, last = path.read_bytes().split(b"\n")  # `last` is what follows the last line end
    steps: list[StepLine] = []
    not_finite = 0
    for number, line in enumerate([*lines, last], start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            value = parse(line, where)
        except DataError:
            if number <= len(lines):
                raise
            notes.append(f"The last line of {path.name} (line {number}) is unfinished and was left out.")
            continue
        step = record(StepLine, value, where)
        if steps and step.step <= steps[-1].step:
            message = f"{where}: steps should ascend. Found step {step.step} after step {steps[-1].step}."
            raise DataError(message)
        steps.append(step)
        not_finite += any(is_not_finite(value.get(key)) for key in _LOSSES)
    if not steps:
        raise DataError(f"{path} holds no complete step.")
    if not_finite:
        notes.append(f"{not_finite} of {len(steps)} steps have a loss that is NaN or infinite; it is left out.")
    return tuple(steps)


def _read_optional(kind: type[T], path: Path) -> T:
    return record(kind, _read_object(path) if path.is_file() else {}, str(path))


def _read_object(path: Path) -> dict[str, Any]:
    return json_object(parse(path.read_bytes(), str(path)), str(path))


def _read_examples(folder: Path, last_step: int, notes: list[str], *, chooses: bool) -> Examples | None:
    """Of the run up to `last_step`; those of another state of it are left out."""
    path = folder / "examples.json"
    if not path.is_file():
        if chooses and (folder / "chosen.jsonl").is_file():
            notes.append(
                f"{path.name} is missing: it is written when training ends. Which examples were chosen is in "
                "chosen.jsonl."
            )
        return None
    value = _read_object(path)
    if (end := field_of(int, value, "last_step", str(path))) != last_step:
        notes.append(f"{path.name} ends at step {end}, not at {last_step}, and was left out.")
        return None
    found = record(Examples, value, str(path))
    return replace(found, draws=(min(found.draws, default=0), max(found.draws, default=0)))


def _read_info(path: Path, notes: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        notes.append(f"{path.name} is missing: settings, model, hardware and versions are unknown.")
        return {}
    value = _read_object(path)
    record(_Info, value, str(path))  # refuses what is of another kind
    return value


def _read_eval_losses(folder: Path, notes: list[str]) -> dict[str, tuple[tuple[int, float], ...]]:
    """Held-out losses from the `trainer_state.json` of the latest step, here or in a checkpoint."""
    newest, newest_step = None, -1
    checkpoints = sorted(folder.glob("checkpoint-*/trainer_state.json"))
    for path in (folder / "trainer_state.json", *checkpoints):
        if not path.is_file():
            continue
        name = path.relative_to(folder)
        try:
            state = json_object(parse(path.read_bytes(), str(name)), str(name))
            step = field_of(int, state, "global_step", str(name)) or 0
        except DataError as error:
            notes.append(f"Left out: {error}")
            continue
        if step > newest_step:
            newest, newest_step = state, step
    if newest is None:
        return {}
    curves: dict[str, dict[int, float]] = {}
    history = newest.get("log_history")
    for entry in history if isinstance(history, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            continue
        for key, loss in entry.items():
            is_loss = key.startswith("eval_") and key.endswith("_loss")
            if is_loss and isinstance(loss, (int, float)) and math.isfinite(loss):
                curves.setdefault(key, {})[entry["step"]] = float(loss)
    return {name: tuple(sorted(curve.items())) for name, curve in sorted(curves.items())}
