"""A comparison in the terminal, in `comparison.md` and in `comparison.html`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from rich.table import Table

from corebatch.bench.runs import format as words
from corebatch.bench.runs import tables as sheets
from corebatch.bench.runs.comparison import AXES, Comparison
from corebatch.bench.runs.kept_promises import promises_sheet
from corebatch.bench.runs.power import power_sheet, quick_words
from corebatch.bench.runs.statistics import losses, metrics, paired_tests
from corebatch.bench.runs.task_tables import task_sources
from corebatch.rendering import page
from corebatch.rendering.formats import NOTHING, count
from corebatch.rendering.sheet import Sheet, markdown_table, rich_table, without_repeats
from corebatch.text import markdown as markdown_text
from corebatch.text import terminal

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
    from corebatch.bench.runs.charts import looks, shown_first

    plan = comparison.plan
    by_mean, tasks = _parts(comparison)
    return page.render(
        _TEMPLATE,
        name=comparison.folder.resolve().name,
        over="corebatch compare",
        command="corebatch compare",
        title=words.verdict(comparison)[0],
        outcome=_said(comparison),
        facts=" · ".join(f"{key}: {value}" for key, value in sheets.budgets(comparison)),
        notes=comparison.notes,
        tiles=_tiles(comparison) if plan.arms else [],
        means=plan.means,
        arms=plan.arms,
        looks=looks(comparison),
        shown=shown_first(comparison),
        losses=by_mean,
        tasks=tasks,
        task_sources=task_sources(comparison),
        no_tests="" if sheets.tests(comparison) else NO_TESTS,
        source_differences=charts.source_differences(comparison),
        comparison=comparison,
        sheets=sheets,
        marks=sheets.marks(comparison),
        promises=promises_sheet(comparison),
        power=power_sheet(comparison.plan.power, comparison),
        plan=[
            ("The question", [*sheets.budgets(comparison), *sheets.flat(plan.settings)]),
            ("Tuning", sheets.flat(plan.tuning)),
            *([("Timing", sheets.flat(plan.timing))] if plan.timing else []),
            ("Provenance", sheets.provenance(comparison)),
        ],
        foot="Made from plan.json and runs.jsonl by corebatch compare",
    )


def _tiles(comparison: Comparison) -> list[tuple[str, str, str]]:
    planned = len(comparison.plan.arms) * len(comparison.plan.seeds)
    left_out = len(comparison.runs) - len(comparison.comparable)
    missing = len(comparison.missing)
    made = [
        (count(len(comparison.plan.arms)), "arms", f"{len(comparison.plan.baselines)} baselines"),
        (count(len(comparison.comparable)), "comparable runs", f"of {count(planned)} planned"),
        (count(left_out + missing), "left out or missing", f"{count(left_out)} left out, {count(missing)} missing"),
    ]
    for metric in losses(comparison):
        tests = paired_tests(comparison, metric)
        better, worse = (sum(test.verdict == word for test in tests) for word in ("better", "worse"))
        below = f"{metric.title}; worse than {worse}" if tests else metric.title
        made.append((f"{better} of {len(tests)}" if tests else NOTHING, "baselines beaten", below))
    return made


def _parts(comparison: Comparison) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Charts and tables of each mean of the held-out loss, and of each task."""
    from corebatch.bench.runs import charts

    measured, means = metrics(comparison), comparison.plan.means
    tests: Sequence[Sheet | None] = sheets.tests(comparison) or [None] * len(measured)
    reaches: Sequence[Sheet | None] = sheets.reaches(comparison) or [None] * len(means)
    parts: list[dict[str, Any]] = []
    for number, (metric, test) in enumerate(zip(measured, tests, strict=True)):
        name = f"task{number}" if metric.task else metric.name
        drawn = number < len(means) + _MOST_TASKS
        ends = (charts.finals(comparison, metric, name), charts.differences(comparison, metric, name)) if drawn else ()
        parts.append({"name": name, "title": metric.title.capitalize(), "ends": ends, "test": test})
    for part, reach in zip(parts, reaches, strict=False):  # the means come first
        part |= {"reach": reach, "curves": [charts.curves(comparison, part["name"], axis) for axis in AXES]}
    return parts[: len(means)], parts[len(means) :]


def terminal_tables(comparison: Comparison) -> list[Table]:
    """Tables for rich, in the order to be read: outcome in sentences, cost, losses, tests, time to loss, marks. Raises
    MissingExtraError: scipy is not installed."""
    parts = [
        sheets.spent(comparison),
        sheets.losses(comparison),
        *sheets.tests(comparison),
        *sheets.reaches(comparison)[:1],
        promises_sheet(comparison),
        power_sheet(comparison.plan.power, comparison),
        sheets.marks(comparison),
    ]
    found = without_repeats(part for part in parts if part is not None)
    return [_sentences(comparison), *(rich_table(sheet, _TEXTS) for sheet in found)]


def _said(comparison: Comparison) -> list[str]:
    """What a quick comparison can tell at all, then what came out."""
    return [*quick_words(comparison), *words.headline(comparison)]


def _sentences(comparison: Comparison) -> Table:
    table = Table.grid()
    table.add_column(overflow="fold")
    table.add_row(terminal(words.verdict(comparison)[0], "bold"))
    for line in _said(comparison):
        table.add_row(terminal(line))
    for note in comparison.notes:
        table.add_row(terminal(f"Note: {note}", "yellow"))
    return table


_TEXTS = (
    *("arm", "lever", "against", "of", "baseline", "source"),
    *("method", "budget", "role", "effect", "reason", "verdict"),
)


def markdown(comparison: Comparison) -> str:
    """The text of `comparison.md`. Raises MissingExtraError: scipy is not installed."""
    plan = comparison.plan
    tests, reaches = sheets.tests(comparison), sheets.reaches(comparison)
    parts = [
        f"# {markdown_text(words.verdict(comparison)[0])}",
        _bullets(_said(comparison)),
        "## The question",
        _bullets(f"{name}: {value}" for name, value in sheets.budgets(comparison)),
        _pairs(sheets.flat(plan.settings)),
        "## Outcome",
        _sheet(sheets.outcome(comparison)),
        "## Tests",
        *(map(_sheet, without_repeats(tests)) if tests else [NO_TESTS]),
        "## Time to the loss of each baseline",
        *(map(_sheet, without_repeats(reaches)) if reaches else [NO_TESTS]),
        _sheet(sheets.reach_of_all(comparison)),
        *_section("## Expected by the advice", promises_sheet(comparison)),
        *_section("## Computed beforehand", power_sheet(comparison.plan.power, comparison)),
        "## Sources",
        _sheet(sheets.sources(comparison)) or "No run has a loss by source.",
        *map(_sheet, task_sources(comparison)),
        "## Marked and missing runs",
        _sheet(sheets.marks(comparison)) or "None.",
        _bullets(comparison.notes),
        "## Tuning and timing",
        _pairs(sheets.flat(plan.tuning)),
        _sheet(sheets.timing(comparison)),
        _pairs(sheets.flat(plan.timing)),
        "## Provenance",
        _pairs(sheets.provenance(comparison)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


NO_TESTS = "The plan has no reference arm with a baseline beside it."


def _section(title: str, sheet: Sheet | None) -> list[str]:
    return [] if sheet is None else [title, _sheet(sheet)]


def _sheet(sheet: Sheet | None) -> str:
    return "" if sheet is None else markdown_table(sheet, _TEXTS)


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- {markdown_text(name)}: {markdown_text(value)}" for name, value in pairs)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {markdown_text(line)}" for line in lines)
