"""Reads a run folder: `selection.jsonl`, `corebatch.json`, `examples.json`, `trainer_state.json`, `evaluation.json`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from corebatch.errors import DataError
from corebatch.intervals import wilson_interval
from corebatch.report.fields import Fields, parse
from corebatch.report.record import (
    Accuracy,
    Evaluated,
    Example,
    Examples,
    RunRecord,
)
from corebatch.step_line import Distance, GradientError, StepLine

_LOSSES = ("pool_loss", "chosen_loss", "train_loss")


def read_run(folder: str | PathLike[str]) -> RunRecord:
    """Read what a run left behind.

    An unfinished last line of `selection.jsonl` (a killed run) is left out and noted.

    Raises:
        DataError: there is no such folder, no complete step, or a file is broken; the message names the
            file and, for `selection.jsonl`, the line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"A run folder was expected. Found no folder at {folder}.")
    notes: list[str] = []
    steps = _read_steps(folder / "selection.jsonl", notes)
    info = _read_info(folder / "corebatch.json", notes)
    before, after = _read_evaluation(folder / "evaluation.json")
    return RunRecord(
        folder=folder,
        steps=steps,
        info=info,
        eval_losses=_read_eval_losses(folder, notes),
        examples=_read_examples(folder, steps[-1].step, notes),
        before=before,
        after=after,
        notes=tuple(notes),
    )


def _read_steps(path: Path, notes: list[str]) -> tuple[StepLine, ...]:
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
        fields = Fields(value, where)
        step = _step(fields)
        if steps and step.step <= steps[-1].step:
            message = f"{where}: steps should ascend. Found step {step.step} after step {steps[-1].step}."
            raise DataError(message)
        steps.append(step)
        not_finite += any(fields.is_not_finite(key) for key in _LOSSES)
    if not steps:
        raise DataError(f"{path} holds no complete step.")
    if not_finite:
        notes.append(f"{not_finite} of {len(steps)} steps have a loss that is NaN or infinite; it is left out.")
    return tuple(steps)


def _step(fields: Fields) -> StepLine:
    """Each field by its kind, of which its annotation tells."""
    return StepLine(**{each.name: _KINDS[str(each.type)](fields, each.name) for each in dataclasses.fields(StepLine)})


def _gradient_error(fields: Fields, key: str) -> GradientError | None:
    value = fields.object(key)
    if not value:
        return None
    inner = Fields(value, f"{fields.where}: {key}")
    beside = Fields(inner.object("random"), f"{inner.where}.random")
    return GradientError(**_distance(inner), norm=inner.number("norm"), random=Distance(**_distance(beside)))


def _distance(fields: Fields) -> dict[str, float | None]:
    return {key: fields.number(key) for key in ("error", "cosine", "length")}


_KINDS: Mapping[str, Callable[[Fields, str], Any]] = {
    "int": Fields.count,
    "int | None": Fields.count_or_none,
    "float | None": Fields.number,
    "str | None": Fields.text,
    "tuple[str, ...]": Fields.names,
    "Mapping[str, int]": Fields.counts,
    "Mapping[str, float]": Fields.numbers,
    "GradientError | None": _gradient_error,
}


def _read_examples(folder: Path, last_step: int, notes: list[str]) -> Examples | None:
    """Of the run up to `last_step`; those of another state of it are left out."""
    path = folder / "examples.json"
    if not path.is_file():
        if (folder / "chosen.jsonl").is_file():
            notes.append(
                f"{path.name} is missing: it is written when training ends. Which examples were chosen is in "
                "chosen.jsonl."
            )
        return None
    fields = Fields(parse(path.read_bytes(), str(path)), str(path))
    if fields.count("last_step") != last_step:
        notes.append(f"{path.name} ends at step {fields.count('last_step')}, not at {last_step}, and was left out.")
        return None
    draws = Fields({"draws": dict(enumerate(fields.list("draws")))}, str(path)).counts("draws")
    low, high = min(draws.values(), default=0), max(draws.values(), default=0)
    return Examples(
        steps=fields.count("steps"),
        drawn=fields.count("examples_drawn"),
        in_data=fields.count_or_none("examples_in_data"),
        draws=(low, high),
        never_chosen=fields.count("never_chosen"),
        never_chosen_by_chance=fields.number("never_chosen_by_chance"),
        ranked_by=fields.text("ranked_by"),
        most=_examples(fields, "most"),
        least=_examples(fields, "least"),
    )


def _examples(fields: Fields, key: str) -> tuple[Example, ...]:
    entries = [Fields(value, f"{fields.where}: {key}") for value in fields.list(key)]
    return tuple(
        Example(
            id=entry.count("id"),
            source=entry.text("source") or "unknown",
            drawn=entry.count("drawn"),
            chosen=entry.count("chosen"),
            expected=entry.number("expected") or 0.0,
            weight=entry.number("weight"),
            text=entry.text("text"),
        )
        for entry in entries
    )


def _read_info(path: Path, notes: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        notes.append(f"{path.name} is missing: settings, model, hardware and versions are unknown.")
        return {}
    fields = Fields(parse(path.read_bytes(), str(path)), str(path))
    for key in ("coreset", "training", "sources", "hardware", "versions"):
        fields.object(key)  # refuses what is not an object
    for source in fields.object("sources"):
        inner = Fields(fields.object("sources")[source], f"{path}: sources.{source}")
        inner.count_or_none("examples")
        inner.number("share")
    fields.count_or_none("dropped_rows")
    peak = Fields(fields.object("peak_flops"), f"{path}: peak_flops")
    peak.number("value")
    peak.text("how")
    return fields.value


def _read_evaluation(path: Path) -> tuple[Evaluated | None, Evaluated | None]:
    if not path.is_file():
        return None, None
    fields = Fields(parse(path.read_bytes(), str(path)), str(path))
    before, after = (
        _evaluated(fields.object(when), f"{path}: {when}") if fields.object(when) else None
        for when in ("before", "after")
    )
    return before, after


def _evaluated(value: Mapping[str, Any], where: str) -> Evaluated:
    fields = Fields(value, where)
    per_source = {
        name: _accuracy(Fields(found, f"{where}.per_source.{name}"))
        for name, found in fields.object("per_source").items()
    }
    overall = fields.object("overall")
    found = _accuracy(Fields(overall, f"{where}.overall")) if overall else None
    return Evaluated(per_source=per_source, overall=found)


def _accuracy(fields: Fields) -> Accuracy:
    """Counts and interval; where the file gives no interval, Wilson's (1927) at 95 %."""
    correct, total = fields.count("correct"), fields.count("total")
    if correct > total:
        raise DataError(f"{fields.where}: correct should be at most total. Found {correct} of {total}.")
    low, high = fields.number("low"), fields.number("high")
    if low is None or high is None:
        low, high = wilson_interval(correct, total) if total else (0.0, 1.0)
    if not 0 <= low <= high <= 1:
        raise DataError(f"{fields.where}: low <= high should be shares from 0 to 1. Found {low} and {high}.")
    return Accuracy(correct=correct, total=total, low=low, high=high)


def _read_eval_losses(folder: Path, notes: list[str]) -> dict[str, tuple[tuple[int, float], ...]]:
    """Held-out losses from the `trainer_state.json` of the latest step, here or in a checkpoint."""
    newest, newest_step = None, -1
    checkpoints = sorted(folder.glob("checkpoint-*/trainer_state.json"))
    for path in (folder / "trainer_state.json", *checkpoints):
        if not path.is_file():
            continue
        name = path.relative_to(folder)
        try:
            state = Fields(parse(path.read_bytes(), str(name)), str(name))
            step = state.count_or_none("global_step") or 0
        except DataError as error:
            notes.append(f"Left out: {error}")
            continue
        if step > newest_step:
            newest, newest_step = state, step
    if newest is None:
        return {}
    curves: dict[str, dict[int, float]] = {}
    history = newest.value.get("log_history")
    for entry in history if isinstance(history, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            continue
        for key, loss in entry.items():
            is_loss = key.startswith("eval_") and key.endswith("_loss")
            if is_loss and isinstance(loss, (int, float)) and math.isfinite(loss):
                curves.setdefault(key, {})[entry["step"]] = float(loss)
    return {name: tuple(sorted(curve.items())) for name, curve in sorted(curves.items())}
