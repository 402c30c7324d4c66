"""Charts of the gradient error: how far the small batch's gradient was from the large batch's."""

from __future__ import annotations

from collections.abc import Sequence

from corebatch.rendering import svg
from corebatch.rendering.chart import Chart
from corebatch.report.lines import DASH, Line, lines
from corebatch.step_line import StepLine

_COLORS = {"chosen": svg.CHOSEN, "random": svg.EXTRA[4]}


def error(steps: Sequence[StepLine]) -> Chart | None:
    """The relative error over the steps that measured it; None without any."""
    return _chart(
        "gradient-error",
        "Error of the small batch's gradient (share of the large batch's length)",
        steps,
        (("chosen", "chosen", "error", "-"), ("as many random rows", "random", "error", "-")),
        "Distance from the exact gradient of the large batch, by its length, in evaluation mode; 0 is the same "
        "gradient. The random rows are other ones at each step.",
    )


def direction(steps: Sequence[StepLine]) -> Chart | None:
    """Cosine and length over the steps that measured them; None without any."""
    return _chart(
        "gradient-direction",
        "Direction (cosine) and length (ratio) of the small batch's gradient",
        steps,
        [
            (f"{what}, {which}", which, what, dash)
            for what, dash in (("cosine", "-"), ("length", DASH))
            for which in ("chosen", "random")
        ],
        "Against the large batch's: 1 is the same direction and the same length.",
        line_at=1.0,
    )


def _chart(
    name: str,
    title: str,
    steps: Sequence[StepLine],
    curves: Sequence[tuple[str, str, str, object]],  # name, which rows, what of them, dash
    caption: str,
    line_at: float | None = None,
) -> Chart | None:
    measured = [step for step in steps if step.gradient_error is not None]
    if not measured:
        return None
    found = [
        Line(label, [getattr(getattr(step.gradient_error, which), what) for step in measured], _COLORS[which], dash)
        for label, which, what, dash in curves
    ]
    return lines(name, title, measured, found, caption, line_at=line_at, ends=(steps[0].step, steps[-1].step))
