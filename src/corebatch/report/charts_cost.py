"""Charts of cost: time and memory by phase; weights and what they leave of the sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from corebatch.rendering import formats, svg
from corebatch.rendering.svg import Chart, Key
from corebatch.report import rows, series
from corebatch.report.lines import Line, lines
from corebatch.report.record import PHASES
from corebatch.report.summary import Summary
from corebatch.step_line import StepLine

_COLORS = dict(
    zip(
        PHASES,
        (svg.EXTRA[4], svg.POOL, svg.EXTRA[3], svg.CHOSEN, svg.EXTRA[0], svg.EXTRA[2], svg.TRAINED, svg.EXTRA[1]),
        strict=True,
    )
)
_UNKNOWN = svg.MUTED
_MOST_BARS = 80
_APART = 0.02
"""Phases whose peaks differ by a smaller share have the same."""


def _color(phase: str) -> str:
    return _COLORS.get(phase, _UNKNOWN)


def time(summary: Summary) -> Chart | None:
    """Mean time of each phase; None when no time was recorded."""
    found = [(p.name, p.mean_ms, p.share) for p in summary.phases if p.mean_ms is not None]
    if not found:
        return None
    texts = [f"{formats.milliseconds(ms)} ({formats.percent(share)})" for _, ms, share in found]
    return Chart(
        title="Time of a step by phase (milliseconds, mean)",
        svg=_bars("time", "Mean time by phase", [(name, ms) for name, ms, _ in found], texts),
        caption="Mean over the steps that report the phase; in brackets its share of all measured time.",
    )


def memory(summary: Summary) -> Chart | None:
    """Peak memory of each phase; None when none was recorded, or it tells no phases apart: a process's own on a CPU,
    which has no peak by phase."""
    found = [(p.name, p.peak_memory_mb) for p in summary.phases if p.peak_memory_mb is not None]
    values = [value for _, value in found]
    if not values or max(values) - min(values) < _APART * max(values):
        return None
    texts = [f"{value:,.0f}" for value in values]
    return Chart(
        title="Peak memory by phase (MB, highest of all steps)",
        svg=_bars("memory", "Peak memory by phase", found, texts),
    )


def _bars(name: str, label: str, found: Sequence[tuple[str, float | None]], texts: Sequence[str]) -> str:
    names = [formats.shorten(rows.phase(phase), 14) for phase, _ in found]
    heights = np.array([value for _, value in found], dtype=np.float64)
    most = float(heights.max()) or 1.0

    def paint(axes: Axes) -> None:
        axes.barh(range(len(names)), heights, height=0.62, color=[_color(phase) for phase, _ in found])
        for row, (value, text) in enumerate(zip(heights, texts, strict=True)):
            axes.text(value + 0.015 * most, row, text, color=svg.INK, va="center", fontsize=10.5)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", labelcolor=svg.INK)
        axes.set_xlim(0, 1.5 * most)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xticks([])
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)

    left = 14 + round(6.4 * max(len(text) for text in names))
    frame = svg.Frame(height=12 + 28 * len(names), left=left, bottom=4, top=4)
    return svg.draw(name, f"{label}: {', '.join(names)}", frame, paint)


def time_over_steps(steps: Sequence[StepLine], summary: Summary) -> Chart | None:
    """Time of the phases stacked over the steps; None when no time was recorded or for one step."""
    names = [p.name for p in summary.phases if p.mean_ms is not None]
    if not names or len(steps) < 2:
        return None
    parts = series.bins(len(steps), _MOST_BARS)
    stack = np.cumsum(
        [series.thin(series.values([s.ms.get(name, 0.0) / 1000 for s in steps]), parts) for name in names], axis=0
    )
    edges = np.linspace(steps[0].step - 0.5, steps[-1].step + 0.5, len(parts) + 1)
    tallest, usual = float(stack[-1].max()), float(np.quantile(stack[-1], 0.95))
    top = 1.08 * tallest if tallest <= 2 * usual else 1.6 * usual

    def paint(axes: Axes) -> None:
        below = np.zeros(len(parts))
        for name, level in zip(names, stack, strict=True):
            low, high = (np.append(x, x[-1]) for x in (below, level))
            axes.fill_between(edges, low, high, step="post", color=_color(name), linewidth=0)
            below = level
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, top or 1.0)
        svg.step_axis(axes)

    cut = f"The axis is cut: the tallest column is {tallest:.3g} s. " if tallest > top else ""
    each = (
        f"Each column is the mean of about {round(len(steps) / len(parts))} steps." if len(parts) < len(steps) else ""
    )
    return Chart(
        title="Time of each step (seconds, phases stacked)",
        svg=svg.draw("time-steps", "Seconds by phase over the steps", svg.Frame(), paint),
        keys=tuple(
            Key(name=formats.shorten(rows.phase(n), 20), variable=svg.VARIABLES[_color(n)], mark="box") for n in names
        ),
        caption=f"{cut}{each}".strip(),
    )


def tokens(steps: Sequence[StepLine]) -> Chart | None:
    """Tokens scored and tokens trained in each step; None when neither was counted."""
    both = (("scored", "tokens_scored", svg.POOL), ("trained", "tokens_trained", svg.TRAINED))
    found = [Line(name, [getattr(step, field) for step in steps], color) for name, field, color in both]
    return lines("tokens", "Tokens of a step (number)", steps, [line for line in found if any(line.values)])


def largest_weight(steps: Sequence[StepLine]) -> Chart | None:
    """The largest weight in each step; None when weights were not recorded."""
    found = [Line("largest weight", [s.weight_max for s in steps], svg.CHOSEN)]
    return lines("weight", "Largest weight of a chosen row (factor on its loss)", steps, found, line_at=1.0)


def effective_sample_size(steps: Sequence[StepLine]) -> Chart | None:
    """Kish's effective sample size beside the rows trained; None when it was not recorded."""
    sizes = [s.effective_sample_size for s in steps]
    if all(size is None for size in sizes):
        return None
    found = [
        Line("rows trained", [float(s.chosen_examples) for s in steps], svg.EXTRA[4]),
        Line("effective sample size", sizes, svg.CHOSEN),
    ]
    return lines("ess", "Rows trained, and effective sample size of their weights (rows)", steps, found)
