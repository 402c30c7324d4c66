"""Charts of losses: the pool, the chosen and the trained rows; held-out loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from corebatch.rendering import formats, svg
from corebatch.rendering.chart import Chart, Key
from corebatch.report.lines import DASH, Line, lines
from corebatch.report.record import RunRecord
from corebatch.step_line import StepLine

_CURVES = (
    ("pool", "pool_loss", svg.POOL, "-"),
    ("chosen, unweighted", "chosen_loss", svg.CHOSEN, "-"),
    ("trained", "train_loss", svg.TRAINED, DASH),
)
_HELD_OUT = (svg.POOL, svg.CHOSEN, svg.TRAINED, *svg.EXTRA)
_CAPTION = (
    "Pool and chosen are measured before the step's update, while scoring; trained is the loss that was minimised, "
    "with its weights and dropout. A choice of hard rows shows a chosen loss above the pool's; weights that undo the "
    "choice bring the trained loss back to the pool's."
)


def losses(steps: Sequence[StepLine]) -> Chart | None:
    """Loss of what was drawn, chosen and trained over the steps; None when no loss was recorded."""
    title = "Loss of the pool, of the chosen and of the trained rows (nats per token)"
    found = [Line(name, [getattr(step, key) for step in steps], color, dash) for name, key, color, dash in _CURVES]
    return lines("loss", title, steps, found, _CAPTION, clip=True, most=500, wide=True)


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
