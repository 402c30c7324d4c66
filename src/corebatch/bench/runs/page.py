"""Writes `comparison.md` and `comparison.html`.

The page is made of the report's pieces and like the report needs no network and no script: its controls are plain
inputs that style sheets look at. A browser that does not know `:has` shows everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

from corebatch.bench.runs import format as words
from corebatch.bench.runs import tables as sheets
from corebatch.bench.runs.comparison import AXES, MEANS, Comparison
from corebatch.rendering.sheet import Sheet
from corebatch.bench.runs.statistics import LOSSES, metrics, paired_tests
from corebatch.bench.runs.printed import NO_TESTS, markdown
from corebatch.rendering import markup
from corebatch.rendering.page import POLICY, STYLE, require_matplotlib, write
from corebatch.rendering.formats import NOTHING, count

_MOST_TASKS = 8


def write_outputs(comparison: Comparison, folder: str | PathLike[str] | None = None) -> tuple[Path, Path]:
    """Write `comparison.md`, then `comparison.html`, each whole or not at all, and return their paths.

    Args:
        folder: where to; the comparison's own folder by default.

    Raises:
        MissingExtraError: scipy or, for the page, matplotlib is not installed.
    """
    folder = comparison.folder if folder is None else Path(folder)
    text = write(folder / "comparison.md", markdown(comparison))
    require_matplotlib()
    return text, write(folder / "comparison.html", render(comparison))


def render(comparison: Comparison) -> str:
    """The page as text; the same comparison gives the same text."""
    shared = STYLE.read_text(encoding="utf-8")
    own = Path(__file__).with_name("compare.css").read_text(encoding="utf-8")
    body = "\n".join((_top(comparison), *_sections(comparison), _foot()))
    name = markup.esc(comparison.folder.resolve().name)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{name} · corebatch compare</title>
<style>
{shared}{own}{_switches(comparison)}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _switches(comparison: Comparison) -> str:
    """What a control hides."""
    means = "".join(f"main:has(#mean-{m}:not(:checked)) .by-{m} {{ display: none; }}\n" for m in MEANS)
    arms = "".join(
        f'main:has(#show{i}:not(:checked)) [id$="-arm{i}"] {{ display: none; }}\n'
        for i in range(len(comparison.plan.arms))
    )
    return means + arms


def _top(comparison: Comparison) -> str:
    name = markup.esc(comparison.folder.resolve().name)
    plan = comparison.plan
    outcome = "".join(f"<li>{markup.esc(line)}</li>" for line in words.headline(comparison))
    notes = "".join(f"<li>{markup.esc(note)}</li>" for note in comparison.notes)
    line = " · ".join(f"{key}: {value}" for key, value in sheets.budgets(comparison))
    return "\n".join(
        (
            f'<header><p class="over">corebatch compare · {name}</p>',
            f"<h1>{markup.esc(_title(comparison))}</h1>",
            f'<ul class="outcome">{outcome}</ul>',
            f'<p class="facts">{markup.esc(line)}</p></header>',
            f'<ul class="notes">{notes}</ul>' if notes else "",
            markup.tiles(_tiles(comparison)) if plan.arms else "",
        )
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


def _sections(comparison: Comparison) -> list[str]:
    from corebatch.bench.runs import charts  # draws, and so needs matplotlib

    measured = metrics(comparison)
    tests: Sequence[Sheet | None] = sheets.tests(comparison) or [None] * len(measured)
    reaches: Sequence[Sheet | None] = sheets.reaches(comparison) or [None] * len(MEANS)
    groups, tasks = [], []
    for number, (metric, test) in enumerate(zip(measured, tests, strict=True)):
        name = f"task{number}" if metric.task else metric.name
        drawn = number < len(MEANS) + _MOST_TASKS
        ends = (charts.finals(comparison, metric, name), charts.differences(comparison, metric, name)) if drawn else ()
        content = markup.figures(ends, aligned=True) + _table(test)
        if metric.task:
            tasks.append(content)
            continue
        content = markup.figures(charts.curves(comparison, name, axis) for axis in AXES) + content
        heading = f"<h3>{metric.title.capitalize()}</h3>"
        groups.append(f'<div class="by by-{name}">{heading}\n{content}{_table(reaches[number])}</div>')
    sources = sheets.sources(comparison)
    marks = sheets.marks(comparison)
    plan = comparison.plan
    no_tests = "" if tests[0] else f'<p class="read">{NO_TESTS}</p>'
    return [
        markup.section("Held-out loss", _controls(comparison), *groups, f'<p class="read">{_READ}</p>', no_tests),
        markup.section("Tasks", *tasks),
        markup.section("Sources", markup.figures([charts.source_differences(comparison)]), _table(sources)),
        markup.section(
            "All arms in numbers",
            _table(sheets.losses(comparison)),
            _table(sheets.spent(comparison)),
            _table(sheets.reach_of_all(comparison)),
        ),
        markup.section(
            "Marked and missing runs", "<p>None.</p>" if marks is None else f'<div class="texts">{_table(marks)}</div>'
        ),
        markup.section(
            "The plan",
            _table(sheets.timing(comparison)),
            '<div class="blocks">'
            + _block("The question", [*sheets.budgets(comparison), *sheets.flat(plan.settings)])
            + _block("Tuning", sheets.flat(plan.tuning))
            + (_block("Timing", sheets.flat(plan.timing)) if plan.timing else "")
            + _block("Provenance", sheets.provenance(comparison))
            + "</div>",
        ),
    ]


_READ = (
    "Curves are means over comparable runs, with 95 % bands, on a part of the held-out rows; final values are on all "
    "of them. Bands hold what seeds have in common, so tests, which are paired by seed, may tell arms apart whose "
    "bands overlap. Seconds are steps times the seconds a step that were measured side by side, not the noisy clock of "
    "each run. The beginning of curves may lie above the drawing."
)


def _controls(comparison: Comparison) -> str:
    from corebatch.bench.runs.styles import looks, shown_first

    means = "".join(
        f'<label><input type="radio" name="mean" id="mean-{mean}" autocomplete="off"{_checked(i == 0)}>'
        f"{mean} mean</label>"
        for i, mean in enumerate(MEANS)
    )
    styles, first = looks(comparison), shown_first(comparison)
    arms = "".join(
        f'<label title="{markup.esc(arm.title)}"><input type="checkbox" id="show{i}" autocomplete="off"'
        f"{_checked(arm.name in first)}>{styles[arm.name].swatch()}{markup.esc(arm.name)}</label>"
        for i, arm in enumerate(comparison.plan.arms)
    )
    return (
        f'<div class="controls"><fieldset><legend>Loss as</legend>{means}</fieldset>'
        f"<fieldset><legend>Arms</legend>{arms}</fieldset></div>"
    )


def _checked(on: bool) -> str:
    return " checked" if on else ""


def _table(sheet: Sheet | None) -> str:
    if sheet is None:
        return ""
    under = f'<p class="read">{markup.esc(sheet.caption)}</p>' if sheet.caption else ""
    return markup.table(sheet.header, sheet.rows, sheet.title) + under


def _block(title: str, pairs: Iterable[tuple[str, str]]) -> str:
    found = list(pairs)
    content = markup.pairs(found) if found else "<p>unknown</p>"
    return f"<div><h3>{title}</h3>{content}</div>"


def _foot() -> str:
    return "<footer>Made from plan.json and runs.jsonl by corebatch compare; this page needs no network.</footer>"
