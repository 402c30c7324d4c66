"""Writes `comparison.md` and `comparison.html`."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from corebatch.bench.runs import format as words
from corebatch.bench.runs import tables as sheets
from corebatch.bench.runs.comparison import AXES, MEANS, Comparison
from corebatch.bench.runs.printed import NO_TESTS, markdown
from corebatch.bench.runs.statistics import LOSSES, metrics, paired_tests
from corebatch.rendering import page
from corebatch.rendering.formats import NOTHING, count
from corebatch.rendering.sheet import Sheet

_TEMPLATE = Path(__file__).parent / "templates" / "comparison.html"
_MOST_TASKS = 8


def write_outputs(comparison: Comparison, folder: str | PathLike[str] | None = None) -> tuple[Path, Path]:
    """Write `comparison.md`, then `comparison.html`, each whole or not at all, and return their paths. `folder`: where
    to; the comparison's own folder by default. Raises MissingExtraError: scipy or, for the page, matplotlib is not
    installed."""
    folder = comparison.folder if folder is None else Path(folder)
    text = page.write(folder / "comparison.md", markdown(comparison))
    page.require_matplotlib()
    return text, page.write(folder / "comparison.html", render(comparison))


def render(comparison: Comparison) -> str:
    """The page as text; the same comparison gives the same text."""
    from corebatch.bench.runs import charts  # draws, and so needs matplotlib
    from corebatch.bench.runs.styles import looks, shown_first

    plan = comparison.plan
    losses, tasks = _parts(comparison)
    return page.render(
        _TEMPLATE,
        name=comparison.folder.resolve().name,
        over="corebatch compare",
        command="corebatch compare",
        title=_title(comparison),
        outcome=words.headline(comparison),
        facts=" · ".join(f"{key}: {value}" for key, value in sheets.budgets(comparison)),
        notes=comparison.notes,
        tiles=_tiles(comparison) if plan.arms else [],
        means=MEANS,
        arms=plan.arms,
        looks=looks(comparison),
        shown=shown_first(comparison),
        losses=losses,
        tasks=tasks,
        no_tests="" if sheets.tests(comparison) else NO_TESTS,
        source_differences=charts.source_differences(comparison),
        comparison=comparison,
        sheets=sheets,
        marks=sheets.marks(comparison),
        plan=[
            ("The question", [*sheets.budgets(comparison), *sheets.flat(plan.settings)]),
            ("Tuning", sheets.flat(plan.tuning)),
            *([("Timing", sheets.flat(plan.timing))] if plan.timing else []),
            ("Provenance", sheets.provenance(comparison)),
        ],
        foot="Made from plan.json and runs.jsonl by corebatch compare",
    )


def _title(comparison: Comparison) -> str:
    plan, reference = comparison.plan, comparison.plan.reference_arm
    others = [arm for arm in plan.baselines if arm is not reference]
    seeds = f"{len(plan.seeds)} seed{'' if len(plan.seeds) == 1 else 's'}"
    if reference is None or not others:
        return f"{len(plan.arms)} arm{'' if len(plan.arms) == 1 else 's'} over {seeds}"
    return f"{reference.name} against {len(others)} baseline{'' if len(others) == 1 else 's'} over {seeds}"


def _tiles(comparison: Comparison) -> list[tuple[str, str, str]]:
    planned = len(comparison.plan.arms) * len(comparison.plan.seeds)
    left_out = len(comparison.runs) - len(comparison.comparable)
    missing = len(comparison.missing)
    made = [
        (count(len(comparison.plan.arms)), "arms", f"{len(comparison.plan.baselines)} baselines"),
        (count(len(comparison.comparable)), "comparable runs", f"of {count(planned)} planned"),
        (count(left_out + missing), "left out or missing", f"{count(left_out)} left out, {count(missing)} missing"),
    ]
    for metric in LOSSES:
        tests = paired_tests(comparison, metric)
        better, worse = (sum(test.verdict == word for test in tests) for word in ("better", "worse"))
        below = f"{metric.title}; worse than {worse}" if tests else metric.title
        made.append((f"{better} of {len(tests)}" if tests else NOTHING, "baselines beaten", below))
    return made


def _parts(comparison: Comparison) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Charts and tables of each mean of the held-out loss, and of each task."""
    from corebatch.bench.runs import charts

    measured = metrics(comparison)
    tests: Sequence[Sheet | None] = sheets.tests(comparison) or [None] * len(measured)
    reaches: Sequence[Sheet | None] = sheets.reaches(comparison) or [None] * len(MEANS)
    parts: list[dict[str, Any]] = []
    for number, (metric, test) in enumerate(zip(measured, tests, strict=True)):
        name = f"task{number}" if metric.task else metric.name
        drawn = number < len(MEANS) + _MOST_TASKS
        ends = (charts.finals(comparison, metric, name), charts.differences(comparison, metric, name)) if drawn else ()
        parts.append({"name": name, "title": metric.title.capitalize(), "ends": ends, "test": test})
    for part, reach in zip(parts, reaches, strict=False):  # the means come first
        part |= {"reach": reach, "curves": [charts.curves(comparison, part["name"], axis) for axis in AXES]}
    return parts[: len(MEANS)], parts[len(MEANS) :]
