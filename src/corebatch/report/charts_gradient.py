"""Charts of the gradient error: how far the small batch's gradient was from the large batch's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from corebatch.rendering import svg
from corebatch.rendering.chart import Chart, Key
from corebatch.report import series
from corebatch.step_line import StepLine

_MOST_POINTS = 300
_RANDOM = svg.EXTRA[4]
_DASH = (0, (3, 2))
_Curve = tuple[str, str, str, str, object]  # name, which rows, what of them, colour, dash


def error(steps: Sequence[StepLine]) -> Chart | None:
    """The relative error over the steps that measured it; None without any."""
    curves: list[_Curve] = [
        ("chosen", "chosen", "error", svg.CHOSEN, "-"),
        ("as many random rows", "random", "error", _RANDOM, "-"),
    ]
    return _chart(
        "gradient-error",
        "Error of the small batch's gradient (share of the large batch's length)",
        steps,
        curves,
        "Distance from the exact gradient of the large batch, by its length, in evaluation mode; 0 is the same "
        "gradient. The random rows are other ones at each step.",
    )


def direction(steps: Sequence[StepLine]) -> Chart | None:
    """Cosine and length over the steps that measured them; None without any."""
    curves: list[_Curve] = [
        ("cosine, chosen", "chosen", "cosine", svg.CHOSEN, "-"),
        ("cosine, random", "random", "cosine", _RANDOM, "-"),
        ("length, chosen", "chosen", "length", svg.CHOSEN, _DASH),
        ("length, random", "random", "length", _RANDOM, _DASH),
    ]
    return _chart(
        "gradient-direction",
        "Direction (cosine) and length (ratio) of the small batch's gradient",
        steps,
        curves,
        "Against the large batch's: 1 is the same direction and the same length.",
        line_at=1.0,
    )


def _chart(
    name: str,
    title: str,
    steps: Sequence[StepLine],
    curves: list[_Curve],
    caption: str,
    line_at: float | None = None,
) -> Chart | None:
    measured = [(step.step, step.gradient_error) for step in steps if step.gradient_error is not None]
    if not measured:
        return None
    parts = series.bins(len(measured), _MOST_POINTS)
    x = series.thin(series.values([float(step) for step, _ in measured]), parts)
    width = series.window(len(parts))

    def paint(axes: Axes) -> None:
        for _, which, what, color, dash in curves:
            values = series.values([getattr(getattr(found, which), what) for _, found in measured])
            raw = series.thin(values, parts)
            if not np.isfinite(raw).any():
                continue
            if width > 1:
                axes.plot(x, raw, color=color, alpha=0.3, linewidth=0.8, linestyle=dash)
            marker = "o" if len(x) < 20 else None
            line = series.smooth(raw, width)
            axes.plot(x, line, color=color, linewidth=2, linestyle=dash, marker=marker, markersize=3.5)
        if line_at is not None:
            axes.axhline(line_at, color=svg.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        svg.step_limits(axes, steps[0].step, steps[-1].step)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        svg.step_axis(axes)

    smoothed = f" Bold: moving mean over {width} points; faint: raw." if width > 1 else ""
    return Chart(
        title=title,
        svg=svg.draw(name, title, svg.Frame(), paint),
        keys=tuple(
            Key(name=label, variable=svg.VARIABLES[color], mark="line" if dash == "-" else "dash")
            for label, _, _, color, dash in curves
        ),
        caption=caption + smoothed,
    )
