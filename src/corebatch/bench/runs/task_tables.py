"""What a comparison's tasks found on each source, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from corebatch.bench.runs import format as words
from corebatch.bench.runs.comparison import Comparison
from corebatch.bench.runs.statistics import Metric
from corebatch.bench.runs.tables import MOST_SOURCES
from corebatch.rendering.formats import clean, shorten
from corebatch.rendering.sheet import Sheet


def task_sources(comparison: Comparison) -> list[Sheet]:
    """A table for each task of several sources: the accuracy on each in each arm that has runs."""
    found: dict[str, list[Mapping[str, Mapping[str, float]]]] = {}
    for arm in comparison.plan.arms:
        if runs := comparison.of(arm.name):
            found[arm.name] = [run.final.task_sources for run in runs.values() if run.final]
    shares = [of_task for runs in found.values() for run in runs for of_task in run.items()]
    made = []
    for task in dict.fromkeys(name for name, _ in shares):
        metric = Metric(task, task=True)
        names = dict.fromkeys(source for name, by_source in shares if name == task for source in by_source)
        rows = []
        for source in list(names)[:MOST_SOURCES]:
            means = (_mean(run[task][source] for run in runs if source in run.get(task, ())) for runs in found.values())
            rows.append((shorten(source, 60), *(words.value(metric, mean) for mean in means)))
        title = f"{clean(task)}: accuracy by source (mean over seeds)"
        made.append(Sheet(title=title, header=("source", *map(clean, found)), rows=tuple(rows)))
    return made


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
