"""Charts of losses: the pool, the chosen and the trained rows; held-out loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from corebatch.rendering import formats, svg
from corebatch.rendering.chart import Chart, Key
from corebatch.report import series
from corebatch.report.record import RunRecord
from corebatch.report.series import Floats
from corebatch.step_line import StepLine

_MOST_POINTS = 500
_CURVES = (
    ("pool", "pool_loss", svg.POOL, "-"),
    ("chosen, unweighted", "chosen_loss", svg.CHOSEN, "-"),
    ("trained", "train_loss", svg.TRAINED, (0, (3, 2))),
)
_HELD_OUT = (svg.POOL, svg.CHOSEN, svg.TRAINED, *svg.EXTRA)


def losses(steps: Sequence[StepLine]) -> Chart | None:
    """Loss of what was drawn, chosen and trained over the steps; None when no loss was recorded."""
    parts = series.bins(len(steps), _MOST_POINTS)
    x = series.thin(series.values([float(step.step) for step in steps]), parts)
    curves: list[tuple[Floats, Floats, str, object]] = []
    keys: list[Key] = []
    for name, field, color, dash in _CURVES:
        raw = series.thin(series.values([getattr(step, field) for step in steps]), parts)
        if not np.isfinite(raw).any():
            continue
        curves.append((raw, series.smooth(raw, series.window(len(raw))), color, dash))
        keys.append(Key(name=name, variable=svg.VARIABLES[color], mark="line" if dash == "-" else "dash"))
    if not curves:
        return None
    ends = series.limits([raw for raw, *_ in curves], [line for _, line, *_ in curves])

    def paint(axes: Axes) -> None:
        marker = "o" if len(x) < 20 else None
        for raw, line, color, dash in curves:
            if len(x) >= 20:
                axes.plot(x, raw, color=color, alpha=0.35, linewidth=0.9)
            axes.plot(x, line, color=color, linestyle=dash, linewidth=2, marker=marker, markersize=3.5)
        svg.step_limits(axes, steps[0].step, steps[-1].step)
        axes.set_ylim(ends)
        svg.step_axis(axes)

    label = f"Loss over {len(steps)} steps of: {', '.join(key.name for key in keys)}"
    return Chart(
        title="Loss of the pool, of the chosen and of the trained rows (nats per token)",
        svg=svg.draw("loss-wide", label, svg.Frame(width=svg.WIDE, height=300), paint),
        narrow=svg.draw("loss-narrow", label, svg.Frame(height=250), paint),
        keys=tuple(keys),
        caption=_loss_caption(len(x), len(steps)),
    )


def _loss_caption(points: int, steps: int) -> str:
    width = series.window(points)
    how = f"Bold: moving mean over {width} points; faint: raw. " if width > 1 else ""
    each = f"Each point is the mean of about {round(steps / points)} steps. " if points < steps else ""
    return (
        f"{how}{each}Pool and chosen are measured before the step's update, while scoring; trained is the "
        "loss that was minimised, with its weights and dropout. A choice of hard rows shows a chosen loss "
        "above the pool's; weights that undo the choice bring the trained loss back to the pool's."
    )


def held_out(run: RunRecord) -> Chart | None:
    """Loss on held-out data as the trainer logged it; None without any."""
    shown = list(run.eval_losses.items())[: len(_HELD_OUT)]
    if not shown:
        return None

    def paint(axes: Axes) -> None:
        for (_, curve), color in zip(shown, _HELD_OUT, strict=False):
            points = np.array(curve, dtype=np.float64)
            axes.plot(points[:, 0], points[:, 1], color=color, linewidth=2, marker="o", markersize=4)
        axes.margins(x=0.04, y=0.12)
        svg.step_axis(axes)

    names = [_held_out_name(name) for name, _ in shown]
    keys = [
        Key(name=formats.shorten(name, 28), variable=svg.VARIABLES[color])
        for name, color in zip(names, _HELD_OUT, strict=False)
    ]
    left_out = len(run.eval_losses) - len(shown)
    return Chart(
        title="Loss on held-out data (nats per token)",
        svg=svg.draw("held-out", f"Held-out loss: {formats.listing(names)}", svg.Frame(), paint),
        keys=tuple(keys),
        caption=f"{left_out} more curves are not drawn." if left_out else "",
    )


def _held_out_name(key: str) -> str:
    inner = key.removeprefix("eval_").removesuffix("loss").strip("_")
    return inner or "held-out"
