"""Charts of sources: shares drawn and chosen, over the run and over time; held-out answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter

from corebatch.rendering import formats, svg
from corebatch.rendering.svg import Chart, Key, Scale
from corebatch.report import rows, series
from corebatch.report.record import Accuracy, RunRecord
from corebatch.report.series import Floats
from corebatch.report.summary import Summary

MOST = 20
_MOST_COLUMNS = 40
_MOST_POINTS = 20
_NAME_CELLS = 18
_LEVELS = ((1.1, 0.22), (1.25, 0.45), (1.6, 0.7), (2.0, 1.0))
"""From which ratio (or its inverse) a cell is coloured, and how strongly."""


def _frame(names: Sequence[str], row: int = 22) -> svg.Frame:
    frame = svg.named_frame(names, _NAME_CELLS, row)
    return replace(frame, height=frame.height + (24 if len(names) < 3 else 0))


def _row(summary: Summary) -> int:
    """The height of a source's row, with room for a third bar; the same in charts that stand side by side."""
    return 28 if summary.weighted else 22


def _percent(value: float, _: object) -> str:
    return f"{100 * value:.4g} %"


def shares(summary: Summary) -> Chart | None:
    """Each source's share of what was drawn, of what was chosen, and of the weights; None for one source."""
    shown, other = rows.largest(summary, MOST)
    sources = [*shown, *([other] if other else [])]
    if len(sources) < 2:
        return None

    def paint(axes: Axes) -> None:
        y = np.arange(len(sources))
        for i, (_, key, color) in enumerate(bars):
            place = y + (i - (len(bars) - 1) / 2) * (height + 0.03)
            axes.barh(place, [getattr(s, key) or 0.0 for s in sources], height=height, color=color)
        svg.value_axis(axes, _percent, 5)
        svg.name_rows(axes, [s.name for s in sources], _NAME_CELLS)

    bars = [("drawn", "drawn_share", svg.POOL), ("chosen", "chosen_share", svg.CHOSEN)]
    weighted = ""
    if summary.weighted:
        weighted = " With weights, a row of a source chosen less often counts for more."
        if any(s.weight_share is not None for s in sources):
            bars.append(("by weight", "weight_share", svg.TRAINED))
            weighted += " By weight: its share in the sum of weights, near the share drawn if the choice is unbiased."
    height = 0.72 / len(bars)
    names = [s.name for s in sources]
    return Chart(
        title="Share of each source (% of examples)",
        svg=svg.draw("shares", f"Shares of {formats.listing(names)}", _frame(names, _row(summary)), paint),
        keys=tuple(Key(name=name, variable=svg.VARIABLES[color], mark="box") for name, _, color in bars),
        caption=f"Over all steps; the largest sources first.{weighted}",
    )


def pool_and_chosen(run: RunRecord, summary: Summary) -> Chart | None:
    """For each source a panel: its share of the pool, of the chosen and of the weights over the steps; None for one
    source or one step."""
    shown, other = rows.largest(summary, MOST)
    if len(shown) < 2 or len(run.steps) < 2:
        return None
    names = [s.name for s in shown]
    parts = series.bins(len(run.steps), _MOST_POINTS)
    x = series.thin(series.values([float(step.step) for step in run.steps]), parts)
    curves: list[tuple[str, Floats, str, object]] = [("pool", _shares(run, "drawn", names, parts), svg.POOL, "-")]
    curves.append(("chosen", _shares(run, "chosen", names, parts), svg.CHOSEN, "-"))
    if summary.weighted and any(step.weights for step in run.steps):
        curves.append(("chosen, by weight", _shares(run, "weights", names, parts), svg.TRAINED, (0, (3, 1.5))))
    titles = [*names, *([other.name] if other else [])]

    def panel(row: int) -> str:
        values = [shares[row] for _, shares, *_ in curves]
        highest = max((float(v[np.isfinite(v)].max()) for v in values if np.isfinite(v).any()), default=0.0)
        top = _round_up(highest)

        def paint(axes: Axes) -> None:
            for (_, _, color, dash), shares in zip(curves, values, strict=True):
                axes.plot(x, shares, color=color, linewidth=1.8, linestyle=dash)
            svg.step_limits(axes, run.steps[0].step, run.steps[-1].step)
            axes.set_ylim(0, top)
            axes.set_yticks([0, top], ["0", f"{100 * top:.3g} %"])
            axes.set_xticks([run.steps[0].step, run.steps[-1].step])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.compact(value)))
            first, last = axes.get_xticklabels()
            first.set_horizontalalignment("left")
            last.set_horizontalalignment("right")

        frame = svg.Frame(width=186, height=96, left=38, right=6, top=8, bottom=20)
        said = f"Share of {titles[row]} over the steps: {', '.join(name for name, *_ in curves)}"
        return svg.draw(f"source-{row}", said, frame, paint)

    each = (
        f"Each point is the mean of about {round(len(run.steps) / len(parts))} steps. "
        if len(x) < len(run.steps)
        else ""
    )
    return Chart(
        title="Pool against chosen over time (share of each source, %)",
        panels=tuple((formats.shorten(name, 28), panel(row)) for row, name in enumerate(titles)),
        keys=tuple(
            Key(name=name, variable=svg.VARIABLES[color], mark="line" if dash == "-" else "dash")
            for name, _, color, dash in curves
        ),
        caption=f"{each}Over optimizer steps; each panel has a scale of its own.",
    )


def _shares(run: RunRecord, key: str, names: Sequence[str], parts: list[slice]) -> Floats:
    """Shares [sources and one for all others, parts]; NaN where a part says nothing."""
    found = [[getattr(step, key) for step in run.steps[part]] for part in parts]
    totals = np.array([sum(sum(step.values()) for step in steps) for steps in found], float)
    sums = np.array([[sum(step.get(name, 0) for step in steps) for steps in found] for name in names], float)
    sums = np.vstack([sums, totals - sums.sum(axis=0)])
    return np.divide(sums, totals, out=np.full(sums.shape, np.nan), where=totals > 0)


def _round_up(share: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten, at most 1."""
    if not share > 0:
        return 0.01
    power = 10.0 ** np.floor(np.log10(share))
    return float(
        min(1.0, next(step * power for step in (1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10) if step * power >= share - 1e-12))
    )


def shares_over_time(run: RunRecord, summary: Summary) -> Chart | None:
    """Chosen share over drawn share of each source through the run; None for one source."""
    shown, other = rows.largest(summary, MOST)
    if len(shown) < 2:
        return None
    names = [s.name for s in shown]
    parts = series.bins(len(run.steps), _MOST_COLUMNS)
    ratios = _ratios(run, names, parts, other is not None)
    first, last = run.steps[0].step, run.steps[-1].step
    edges = np.linspace(first - 0.5, last + 0.5, len(parts) + 1)

    def paint(axes: Axes) -> None:
        axes.grid(False)
        for index, (_, opacity) in enumerate(_LEVELS):
            for color, sign in ((svg.CHOSEN, 1), (svg.POOL, -1)):
                if cells := list(_cells(edges, _level(ratios) == sign * (index + 1))):
                    path = Path.make_compound_path(*cells)
                    axes.add_collection(
                        PathCollection([path], facecolor=color, alpha=opacity, linewidth=0), autolim=False
                    )
        axes.set_xlim(edges[0], edges[-1])
        svg.name_rows(axes, all_names, _NAME_CELLS)
        svg.step_axis(axes)

    all_names = [*names, *([other.name] if other else [])]
    scale = (
        *(("pool", opacity) for _, opacity in reversed(_LEVELS)),
        ("cell", 1.0),
        *(("chosen", opacity) for _, opacity in _LEVELS),
    )
    steps = f"Each column is about {round(len(run.steps) / len(parts))} steps. " if len(parts) < len(run.steps) else ""
    label = "Ratio of chosen share to drawn share of each source over the steps"
    return Chart(
        title="Share chosen / share drawn over time (ratio)",
        svg=svg.draw("shares-time", label, _frame(all_names, _row(summary)), paint),
        keys=(Scale(low="≤ 0.5", high="≥ 2", colors=scale),),
        caption=(
            f"{steps}Orange: chosen more than drawn, from ratios of 1.1, 1.25, 1.6 and 2; blue: less, from "
            "their inverses. Rare sources vary by chance."
        ),
    )


def _ratios(run: RunRecord, names: list[str], parts: list[slice], with_other: bool) -> Floats:
    """Ratio of shares [sources, parts]; 1 where nothing was drawn."""
    rows = len(names) + with_other
    drawn, chosen = (np.nan_to_num(_shares(run, key, names, parts))[:rows] for key in ("drawn", "chosen"))
    return np.divide(chosen, drawn, out=np.ones_like(drawn), where=drawn > 0)


def _level(ratios: Floats) -> series.Floats:
    """Signed level of each cell: 0 as drawn, up to 4 for favoured, down to -4."""
    bounds = np.log([ratio for ratio, _ in _LEVELS]) - 1e-9
    logs = np.log(np.maximum(ratios, 1e-9))
    return np.sign(logs) * np.searchsorted(bounds, np.abs(logs), side="right")


def _cells(edges: Floats, chosen: np.ndarray) -> Iterable[Path]:
    for row, column in zip(*np.nonzero(chosen), strict=True):
        left, right = edges[column], edges[column + 1]
        top, bottom = row - 0.44, row + 0.44
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        yield Path(corners, closed=True)


def answers(summary: Summary) -> Chart | None:
    """Exact answers on held-out items before and after, with intervals; None without an evaluation."""
    found = rows.answers(summary)
    shown = found[: MOST + 1]
    if not shown:
        return None

    def paint(axes: Axes) -> None:
        for offset, color, which in ((-0.17, svg.POOL, 1), (0.17, svg.CHOSEN, 2)):
            for row, entry in enumerate(shown):
                _interval(axes, row + offset, entry[which], color)  # type: ignore[arg-type]
        svg.value_axis(axes, _percent, 5)
        axes.set_xlim(-0.01, 1.01)
        svg.name_rows(axes, [name for name, *_ in shown], _NAME_CELLS)

    names = [name for name, *_ in shown]
    left_out = len(found) - len(shown)
    return Chart(
        title="Exact answers (% of held-out items, intervals)",
        svg=svg.draw("answers", "Held-out accuracy before and after, by source", _frame(names), paint),
        keys=(
            Key(name="before training", variable="pool", mark="dot"),
            Key(name="after", variable="chosen", mark="dot"),
        ),
        caption=f"{left_out} more sources are in the table." if left_out else "",
    )


def _interval(axes: Axes, y: float, value: Accuracy | None, color: str) -> None:
    if value is None or value.share is None:
        return
    axes.plot([value.low, value.high], [y, y], color=color, linewidth=2, alpha=0.5, solid_capstyle="round")
    axes.plot([value.share], [y], color=color, marker="o", markersize=5, linestyle="none")
