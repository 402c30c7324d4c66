"""Reads the folder of a comparison: `plan.json` and `runs.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from corebatch.bench.runs.comparison import MEANS, Comparison, ComparisonPlan, Final, PlannedArm, Point, Run
from corebatch.bench.runs.validity import find_marks
from corebatch.errors import DataError
from corebatch.report.fields import Fields, parse

_SPENT = {"tokens": "tokens_trained", "flops": "flops", "seconds": "seconds"}


def read_comparison(folder: str | PathLike[str]) -> Comparison:
    """Read what `corebatch compare` left so far; a comparison without any run is one, too.

    Of several lines of an arm and seed the last one that is ok counts, else the last. Lines that are no JSON, such as
    the unfinished last one of a killed run, are left out. Both are noted.

    Raises:
        DataError: no such folder, no `plan.json`, or a field is not what it should be; the message names file, line
            and field.
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
    fields = Fields(parse(path.read_bytes(), str(path)), str(path))
    listed = fields.value.get("arms")
    if not isinstance(listed, list) or not listed:
        raise DataError(f"{path}: field 'arms' should be a list of arms. Found {listed!r}.")
    arms = tuple(_arm(Fields(value, f"{path}: arms[{number}]")) for number, value in enumerate(listed))
    names = [arm.name for arm in arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: arms should have names of their own. Found {', '.join(twice)} more than once.")
    seeds = fields.value.get("seeds")
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise DataError(f"{path}: field 'seeds' should be a list of whole numbers. Found {seeds!r}.")
    return ComparisonPlan(
        reference=fields.text("reference") or "coreset",
        seconds=fields.number("seconds"),
        flops=fields.number("flops"),
        seeds=tuple(dict.fromkeys(seeds)),
        arms=arms,
        **{key: fields.object(key) for key in ("tuning", "timing", "settings", "hardware", "versions")},
        commit=fields.text("commit"),
    )


def _arm(fields: Fields) -> PlannedArm:
    name = _name(fields)
    method, _, budget = name.partition("@")
    return PlannedArm(
        name=name,
        method=fields.text("method") or method,
        budget=fields.text("budget") or budget,
        title=fields.text("title") or name,
        baseline=bool(fields.value.get("baseline", False)),
        **{key: fields.count(key) for key in ("rows_drawn_per_step", "rows_trained_per_step", "steps")},
        seconds_per_step=_numbers(fields, "seconds_per_step"),
        flops_per_step=_numbers(fields, "flops_per_step"),
        learning_rate=fields.number("learning_rate"),
        adam_beta2=fields.number("adam_beta2"),
        edge_of_grid=bool(fields.value.get("edge_of_grid", False)),
        coreset=fields.object("coreset"),
    )


def _name(fields: Fields) -> str:
    name = fields.text("arm")
    if not name:
        raise DataError(f"{fields.where}: field 'arm' is missing.")
    return name


def _numbers(fields: Fields, key: str) -> tuple[float, ...]:
    """A number, or a list of them; empty when the field is missing."""
    found = fields.value.get(key)
    listed = found if isinstance(found, list) else [] if found is None else [found]
    values = Fields({str(i): value for i, value in enumerate(listed)}, f"{fields.where}.{key}")
    numbers = [values.number(str(i)) for i in range(len(listed))]
    if any(number is None for number in numbers):
        raise DataError(f"{fields.where}: field {key!r} should be finite numbers. Found {found!r}.")
    return tuple(number for number in numbers if number is not None)


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
        fields = Fields(value, where)
        if fields.value.get("kind", "compare") != "compare":
            notes.append(
                f"Line {number} of {path.name} is of another kind ({fields.value['kind']!s}) and was left out."
            )
            continue
        runs.append(_run(fields, number))
    return runs


def _run(fields: Fields, line: int) -> Run:
    status = fields.text("status")
    seed = fields.value.get("seed")
    if type(seed) is not int:
        raise DataError(f"{fields.where}: field 'seed' should be a whole number. Found {seed!r}.")
    not_finite = [key for key in ("flops", "seconds", "learning_rate", "adam_beta2") if fields.is_not_finite(key)]
    curve = tuple(_point(value, f"{fields.where}: curve[{i}]", not_finite) for i, value in enumerate(_curve(fields)))
    return Run(
        line=line,
        arm=_name(fields),
        seed=seed,
        ok=status == "ok",
        error=fields.text("error") or (None if status == "ok" else f"status {status!r}"),
        planned=fields.counts("planned"),
        steps=fields.count_or_none("steps"),
        rows_drawn=fields.count_or_none("rows_drawn"),
        rows_trained=fields.count_or_none("rows_trained"),
        tokens_drawn=fields.count_or_none("tokens_drawn"),
        tokens_trained=fields.count_or_none("tokens_trained"),
        tokens_scored=fields.count_or_none("tokens_scored"),
        flops=fields.number("flops"),
        seconds=fields.number("seconds"),
        wall_seconds=fields.number("wall_seconds"),
        learning_rate=fields.number("learning_rate"),
        adam_beta2=fields.number("adam_beta2"),
        order=fields.names("order"),
        curve=curve,
        final=_final(fields, not_finite),
        not_finite=tuple(not_finite),
        hardware=fields.object("hardware"),
        versions=fields.object("versions"),
        commit=fields.text("commit"),
        time=fields.text("time"),
    )


def _curve(fields: Fields) -> list[Any]:
    found = fields.value.get("curve")
    if found is not None and not isinstance(found, list):
        raise DataError(f"{fields.where}: field 'curve' should be a list of points. Found {type(found).__name__}.")
    return found or []


def _point(value: Any, where: str, not_finite: list[str]) -> Point:
    fields = Fields(value, where)
    step = fields.count("step")
    spent = {axis: number for axis, key in _SPENT.items() if (number := fields.number(key)) is not None}
    losses, sources = _losses(fields, f"the curve at step {step}", not_finite)
    return Point(step=step, spent={"steps": float(step), **spent}, losses=losses, sources=sources)


def _final(fields: Fields, not_finite: list[str]) -> Final | None:
    if not fields.object("final"):
        return None
    inner = Fields(fields.value["final"], f"{fields.where}: final")
    losses, sources = _losses(inner, "the final losses", not_finite)
    tasks = Fields(dict(inner.object("tasks")), f"{inner.where}: tasks")
    not_finite += [f"task {name}" for name in tasks.value if tasks.is_not_finite(name)]
    return Final(losses=losses, sources=sources, tasks=inner.numbers("tasks"))


def _losses(fields: Fields, where: str, not_finite: list[str]) -> tuple[dict[str, float], Mapping[str, float]]:
    sources = Fields(dict(fields.object("sources")), f"{fields.where}: sources")
    not_finite += [f"{name} mean of {where}" for name in MEANS if fields.is_not_finite(name)]
    not_finite += [f"source {name} of {where}" for name in sources.value if sources.is_not_finite(name)]
    losses = {name: loss for name in MEANS if (loss := fields.number(name)) is not None}
    return losses, fields.numbers("sources")


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
