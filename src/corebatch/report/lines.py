"""Lines over the optimizer steps: the raw values faint, their moving mean bold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from corebatch.rendering import svg
from corebatch.rendering.chart import Chart, Key
from corebatch.report import series
from corebatch.step_line import StepLine

DASH = (0, (3, 2))


@dataclass(frozen=True, slots=True)
class Line:
    """A name, a value for each step, None where it is unknown, a colour, and dashes as matplotlib takes them."""

    name: str
    values: Sequence[float | None]
    color: str
    dash: object = "-"


def lines(
    name: str,
    title: str,
    steps: Sequence[StepLine],
    found: Sequence[Line],
    caption: str = "",
    *,
    line_at: float | None = None,
    clip: bool = False,
    most: int = 300,
    ends: tuple[int, int] | None = None,
    wide: bool = False,
) -> Chart | None:
    """A chart of the lines that have a finite value; None without any.

    Args:
        line_at: where a level line is drawn.
        clip: the vertical axis leaves out the most extreme raw points; else it holds all, and 0.
        most: points.
        ends: the first and the last step of the horizontal axis, where they are not those of `steps`.
        wide: a drawing over the whole page, and one for phones.
    """
    parts = series.bins(len(steps), most)
    x = series.thin(series.values([float(step.step) for step in steps]), parts)
    width = series.window(len(parts))
    drawn = [(line, series.thin(series.values(line.values), parts)) for line in found]
    drawn = [(line, raw) for line, raw in drawn if np.isfinite(raw).any()]
    if not drawn:
        return None
    smooth = [series.smooth(raw, width) for _, raw in drawn]
    limits = series.limits([raw for _, raw in drawn], smooth) if clip else None
    bold = f"Bold: moving mean over {width} points; faint: raw." if width > 1 else ""
    each = f"Each point is the mean of about {round(len(steps) / len(x))} steps." if len(x) < len(steps) else ""
    first, last = ends or (steps[0].step, steps[-1].step)

    def paint(axes: Axes) -> None:
        for (line, raw), mean in zip(drawn, smooth, strict=True):
            if width > 1:
                axes.plot(x, raw, color=line.color, alpha=0.35, linewidth=0.9)
            marker = "o" if len(x) < 20 else None
            axes.plot(x, mean, color=line.color, linestyle=line.dash, linewidth=2, marker=marker, markersize=3.5)
        if line_at is not None:
            axes.axhline(line_at, color=svg.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        svg.step_limits(axes, first, last)
        positive = all(np.nanmin(raw) >= 0 for _, raw in drawn)
        axes.set_ylim(*(limits or (0.0 if positive else axes.get_ylim()[0], None)))
        svg.step_axis(axes)

    def draw(own: str, frame: svg.Frame) -> str:
        return svg.draw(own, title, frame, paint)

    return Chart(
        title=title,
        svg=draw(f"{name}-wide", svg.Frame(width=svg.WIDE, height=300)) if wide else draw(name, svg.Frame()),
        narrow=draw(f"{name}-narrow", svg.Frame(height=250)) if wide else None,
        keys=tuple(
            Key(name=line.name, variable=svg.VARIABLES[line.color], mark="line" if line.dash == "-" else "dash")
            for line, _ in drawn
        ),
        caption=" ".join(part for part in (caption, bold, each) if part),
    )
