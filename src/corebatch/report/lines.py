"""Lines over the optimizer steps, the raw values faint, their moving mean bold: losses and gradient errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from corebatch.rendering import formats, svg
from corebatch.rendering.svg import Chart, Key
from corebatch.report import series
from corebatch.report.record import RunRecord
from corebatch.report.totals import held_out_name
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

    def paint(axes: Axes) -> None:
        for (line, raw), mean in zip(drawn, smooth, strict=True):
            _plot(axes, line, x, mean, raw if width > 1 else None)
        if line_at is not None:
            axes.axhline(line_at, color=svg.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        svg.step_limits(axes, *(ends or (steps[0].step, steps[-1].step)))
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


def _plot(axes: Axes, line: Line, x: series.Floats, mean: series.Floats, raw: series.Floats | None) -> None:
    """The bold line and, where there is one, the faint one. Points are joined over the steps where nothing is known: a
    rare source has points far apart."""
    known = np.isfinite(mean)
    if raw is not None:
        axes.plot(x[known], raw[known], color=line.color, alpha=0.35, linewidth=0.9)
    axes.plot(x[known], mean[known], color=line.color, linestyle=line.dash, linewidth=2)
    if known.sum() < 20:
        axes.plot(x[known], mean[known], color=line.color, linestyle="none", marker="o", markersize=3.5)


_COLORS = {"chosen": svg.CHOSEN, "random": svg.EXTRA[4]}


def gradient_error(steps: Sequence[StepLine]) -> Chart | None:
    """The relative error over the steps that measured it; None without any."""
    return _chart(
        "gradient-error",
        "Error of the small batch's gradient (share of the large batch's length)",
        steps,
        (("chosen", "chosen", "error", "-"), ("as many random rows", "random", "error", "-")),
        "Distance from the exact gradient of the large batch, by its length, in evaluation mode; 0 is the same "
        "gradient. The random rows are other ones at each step.",
    )


def gradient_direction(steps: Sequence[StepLine]) -> Chart | None:
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


def noise_scale(steps: Sequence[StepLine]) -> Chart | None:
    """The noise scale beside the rows that are trained, over the steps that measured it; None without any."""
    measured = [step for step in steps if step.noise_scale is not None]
    if not measured:
        return None
    found = [
        Line("noise scale", [step.noise_scale for step in measured], svg.CHOSEN),
        Line("rows of a step", [float(step.chosen_examples) for step in measured], svg.TRAINED, DASH),
    ]
    caption = (
        "The batch at which the gradient is as much noise as signal, by running averages. Above it more rows bring "
        "little; below it they do as much as more steps."
    )
    return lines(
        "noise", "Noise scale of the gradient (rows)", measured, found, caption, ends=(steps[0].step, steps[-1].step)
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
    title, caption = "Loss of the pool, of the chosen and of the trained rows (nats per token)", _CAPTION
    if all(step.pool_loss is None and step.chosen_loss is None for step in steps):
        title, caption = "Loss of the trained rows (nats per token)", ""
    found = [Line(name, [getattr(step, key) for step in steps], color, dash) for name, key, color, dash in _CURVES]
    return lines("loss", title, steps, found, caption, clip=True, most=500, wide=True)


def losses_of_sources(steps: Sequence[StepLine], names: Sequence[str]) -> Chart | None:
    """Loss of what was trained of the largest sources over the steps; None without two that are known.

    Args:
        names: of the sources, the largest first.
    """
    caption = "Of what was trained, by the weights of the choice: an estimate of the loss of what was drawn."
    title = "Training loss by source (nats per token)"
    values = [step.loss_by_source or {} for step in steps]
    return _of_sources("source-loss", title, steps, names, values, caption, "are in the table")


def objective_shares(steps: Sequence[StepLine], names: Sequence[str]) -> Chart | None:
    """What the largest sources make up of an online objective over the steps; None where there is none. `names`: as in
    `losses_of_sources`."""
    title, caption = "Share of each source in the objective", "They change by what was measured in the run."
    return _of_sources("objective-shares", title, steps, names, [step.shares for step in steps], caption)


def _of_sources(
    name: str,
    title: str,
    steps: Sequence[StepLine],
    names: Sequence[str],
    values: Sequence[Mapping[str, float]],
    caption: str,
    rest: str = "are not drawn",
) -> Chart | None:
    known = [source for source in names if any(each.get(source) is not None for each in values)]
    shown = known[: len(_HELD_OUT)]
    found = [
        Line(formats.shorten(source, 28), [each.get(source) for each in values], color)
        for source, color in zip(shown, _HELD_OUT, strict=False)
    ]
    more = f" {len(known) - len(shown)} more sources {rest}." if len(known) > len(shown) else ""
    made = lines(name, title, steps, found, caption + more, clip=True, most=500, wide=True)
    return made if len(known) > 1 else None


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

    names = [held_out_name(name) or "held-out" for name, _ in shown]
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
