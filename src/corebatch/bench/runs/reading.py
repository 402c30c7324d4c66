"""Reads the folder of a comparison: `plan.json` and `runs.jsonl`."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from corebatch.bench.runs.comparison import BY_SHARES, MEANS, Comparison, ComparisonPlan, Run
from corebatch.bench.runs.validity import find_marks
from corebatch.errors import DataError
from corebatch.report.fields import is_not_finite, json_object, parse, record


def read_comparison(folder: str | PathLike[str]) -> Comparison:
    """Read what `corebatch compare` left so far; a comparison without any run is one, too.

    Of several lines of an arm and seed the last one that is ok counts, else the last. Lines that are no JSON, such as
    the unfinished last one of a killed run, are left out. Both are noted. Raises DataError: no such folder, no
    `plan.json`, or a field is not what it should be; the message names file, line and field.
    """
    folder = Path(folder)
    if not (folder / "plan.json").is_file():
        raise DataError(f"The folder of a comparison was expected. Found no file {folder / 'plan.json'}.")
    plan = read_plan(folder / "plan.json")
    notes: list[str] = []
    runs = _one_each(read_runs(folder / "runs.jsonl", notes), notes)
    return Comparison(folder=folder, plan=plan, runs=runs, marks=find_marks(plan, runs), notes=tuple(notes))


def read_plan(path: Path) -> ComparisonPlan:
    """The plan. Raises DataError: a field is missing or not what it should be, or two arms share a name."""
    where = str(path)
    value = json_object(parse(path.read_bytes(), where), where)
    arms, seeds = value.get("arms"), value.get("seeds")
    if not isinstance(arms, list) or not arms:
        raise DataError(f"{path}: field 'arms' should be a list of arms. Found {arms!r}.")
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise DataError(f"{path}: field 'seeds' should be a list of whole numbers. Found {seeds!r}.")
    plan = record(ComparisonPlan, value, where)
    names = [arm.name for arm in plan.arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: arms should have names of their own. Found {', '.join(twice)} more than once.")
    return replace(plan, seeds=tuple(dict.fromkeys(plan.seeds)))


def read_runs(path: Path, notes: list[str] | None = None) -> list[Run]:
    """All complete lines in their order, repeated ones too; none where there is no file. What was left out is added to
    `notes`. Raises DataError: a field is not what it should be."""
    notes = [] if notes is None else notes
    if not path.is_file():
        return []
    *lines, last = path.read_bytes().split(b"\n")  # `last` is what follows the last line end
    runs = []
    for number, line in enumerate([*lines, last], start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = parse(line, where)
        except DataError:
            what = "unfinished" if number > len(lines) else "broken"
            notes.append(f"Line {number} of {path.name} is {what} and was left out.")
            continue
        if json_object(value, where).get("kind", "compare") != "compare":
            notes.append(f"Line {number} of {path.name} is of another kind ({value['kind']!s}) and was left out.")
            continue
        status = value.get("status")
        value["error"] = value.get("error") or (None if status == "ok" else f"status {status!r}")
        run = record(Run, value, where, line=number, ok=status == "ok", not_finite=())
        runs.append(replace(run, not_finite=_not_finite(value)))
    return runs


def _not_finite(line: dict[str, Any]) -> tuple[str, ...]:
    """What is NaN or infinite in a line, by name."""
    found = [key for key in ("flops", "seconds", "learning_rate", "adam_beta2") if is_not_finite(line.get(key))]
    final = line.get("final") or {}
    parts = [(point, f"the curve at step {point['step']}") for point in line.get("curve") or ()]
    for losses, where in (*parts, (final, "the final losses")):
        found += [f"{name} mean of {where}" for name in (*MEANS, *BY_SHARES) if is_not_finite(losses.get(name))]
        sources = losses.get("sources") or {}
        found += [f"source {name} of {where}" for name, loss in sources.items() if is_not_finite(loss)]
    return (*found, *(f"task {name}" for name, share in (final.get("tasks") or {}).items() if is_not_finite(share)))


def _one_each(runs: list[Run], notes: list[str]) -> tuple[Run, ...]:
    """One run for each arm and seed: the last that is ok, else the last."""
    grouped: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.arm, run.seed), []).append(run)
    kept = []
    for (arm, seed), found in grouped.items():
        counted = next((run for run in reversed(found) if run.ok), found[-1])
        kept.append(counted)
        if len(found) > 1:
            lines = ", ".join(f"{run.line}{'' if run.ok else ' (failed)'}" for run in found)
            notes.append(f"{arm}, seed {seed}, has {len(found)} lines ({lines}); line {counted.line} counts.")
    return tuple(sorted(kept, key=lambda run: run.line))
