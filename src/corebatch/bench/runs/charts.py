"""The drawings of a comparison: curves, final values, differences. Needs matplotlib.

In curves and in differences by source, what belongs to an arm has an id that ends in `-armK`, K its place in the plan,
so that a page can hide it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from corebatch.bench.runs import format as words
from corebatch.bench.runs.comparison import Comparison
from corebatch.bench.runs.statistics import Estimate, MeanCurve, Metric, estimate, mean_curve, paired_tests, values
from corebatch.bench.runs.tables import source_values
from corebatch.rendering import svg
from corebatch.rendering.formats import compact, shorten
from corebatch.rendering.svg import Chart

MOST_SOURCES = 24
_MOST_POINTS = 60
_NAME_CELLS = 28
_EARLY = 0.3
"""The vertical axis need not hold what is lost in this first share of the horizontal one."""


_COLORS = (svg.POOL, svg.TRAINED, *(svg.EXTRA[i] for i in (1, 2, 3, 0, 4)))
_MARKERS = ("s", "^", "D", "v", "P", "X", "*", "p")
_SMALL = ("plain_sorted", "plain_small")
_FIRST = (*_SMALL, "plain_large_sorted", "plain_large", "random", "tokens_importance")  # so that pages agree on colours
_MOST_SHOWN = 6
_SWATCH_SIZE = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Colour (hexadecimal, one of the report's), marker and dashes as matplotlib takes them."""

    color: str
    marker: str
    dash: tuple[float, ...]
    wide: bool

    @property
    def line(self) -> str | tuple[int, tuple[float, ...]]:
        return (0, self.dash) if self.dash else "-"

    @property
    def variable(self) -> str:
        """The colour's name in the style sheet."""
        return svg.VARIABLES[self.color]

    @property
    def shape(self) -> str:
        """The marker as the `d` of an SVG path, around the origin, in pixels."""
        return svg.marker_path(self.marker, _SWATCH_SIZE)


def looks(comparison: Comparison) -> dict[str, Look]:
    """The look of each arm of the plan. The reference's method stands out; with many methods colours repeat, with
    other markers."""
    plan = comparison.plan
    reference = plan.reference_arm
    present = list(
        dict.fromkeys(arm.method for arm in plan.arms if reference is None or arm.method != reference.method)
    )
    methods = [*(m for m in _FIRST if m in present), *(m for m in present if m not in _FIRST)]
    usual = reference.budget if reference is not None else plan.arms[0].budget
    others = [budget for budget in ("steps", "flops", "wall_clock") if budget != usual]
    made = {}
    for arm in plan.arms:
        dash: tuple[float, ...] = () if arm.budget == usual else (1, 1.4)
        if arm.budget == others[0]:
            dash = (4, 1.6)
        if reference is not None and arm.method == reference.method:
            made[arm.name] = Look(color=svg.CHOSEN, marker="o", dash=dash, wide=True)
        else:
            place = methods.index(arm.method)
            color, marker = _COLORS[place % len(_COLORS)], _MARKERS[place % len(_MARKERS)]
            made[arm.name] = Look(color=color, marker=marker, dash=dash, wide=False)
    return made


def shown_first(comparison: Comparison) -> set[str]:
    """The arms that are drawn before a reader chooses: all of a few, else the reference and the baselines at its
    budget."""
    plan = comparison.plan
    reference = plan.reference_arm
    if len(plan.arms) <= _MOST_SHOWN or reference is None:
        return {arm.name for arm in plan.arms}
    return {arm.name for arm in plan.arms if arm is reference or (arm.baseline and arm.budget == reference.budget)}


def gid(kind: str, arm: int) -> str:
    """The id of a part of a drawing that belongs to an arm."""
    return f"{kind}-arm{arm}"


def curves(comparison: Comparison, mean: str, axis: str) -> Chart | None:
    """Held-out loss against what was spent, a mean curve with its 95 % band for each arm; None without curves."""
    arms = [arm.name for arm in comparison.plan.arms]
    found = [(i, _thin(curve)) for i, arm in enumerate(arms) if (curve := _mean_curve(comparison, arm, mean, axis))]
    if not found:
        return None
    styles, first = looks(comparison), shown_first(comparison)
    limits = _limits([curve for i, curve in found if arms[i] in first] or [curve for _, curve in found])

    def paint(axes: Axes) -> None:
        for i, curve in sorted(found, key=lambda each: styles[arms[each[0]]].wide):
            look = styles[arms[i]]
            if curve.seeds > 1:
                low, high = ([getattr(loss, end) for loss in curve.losses] for end in ("low", "high"))
                band = axes.fill_between(curve.spent, low, high, color=look.color, alpha=0.15, linewidth=0)
                band.set_gid(gid("band", i))
            line = axes.plot(
                curve.spent,
                [loss.mean for loss in curve.losses],
                color=look.color,
                linestyle=look.line,
                linewidth=2.6 if look.wide else 1.7,
                marker=look.marker,
                markersize=6,
                markevery=[len(curve.spent) - 1],
            )
            line[0].set_gid(gid("line", i))
        axes.set_xlim(*limits[0])
        axes.set_ylim(*limits[1])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=axis != "seconds", min_n_ticks=1))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axes.set_xlabel(words.AXIS_NAMES[axis], color=svg.MUTED, fontsize=10.5, loc="right", labelpad=4)

    label = f"Held-out loss, {mean} mean, against {words.AXIS_NAMES[axis]}: {', '.join(arms[i] for i, _ in found)}"
    return Chart(
        title=f"Held-out loss against {words.AXIS_NAMES[axis]} (nats a token, {mean} mean)",
        svg=svg.draw(f"curve-{mean}-{axis}", label, svg.Frame(height=250), paint),
    )


def _mean_curve(comparison: Comparison, arm: str, mean: str, axis: str) -> MeanCurve | None:
    return mean_curve(list(comparison.of(arm).values()), axis, mean)


def _thin(curve: MeanCurve) -> MeanCurve:
    """At most so many points of it, both ends among them."""
    if len(curve.spent) <= _MOST_POINTS:
        return curve
    kept = np.linspace(0, len(curve.spent) - 1, _MOST_POINTS).round().astype(int).tolist()
    return MeanCurve(
        seeds=curve.seeds, spent=tuple(curve.spent[i] for i in kept), losses=tuple(curve.losses[i] for i in kept)
    )


def _limits(found: Sequence[MeanCurve]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Axes that hold the curves but for their steep beginning."""
    end = max(curve.spent[-1] for curve in found)
    low = min(loss.mean if loss.low is None else loss.low for curve in found for loss in curve.losses)
    tops = []
    for curve in found:
        later = [loss for x, loss in zip(curve.spent, curve.losses, strict=True) if x >= _EARLY * end]
        tops += [loss.mean if loss.high is None else loss.high for loss in later or curve.losses[-1:]]
    room = 0.06 * (max(tops) - low) or 0.05 * abs(low) or 1.0
    return (0.0, 1.03 * end or 1.0), (low - room, max(tops) + room)


def finals(comparison: Comparison, metric: Metric, name: str) -> Chart | None:
    """Final values of each arm, a dot for the mean over seeds and a line for its 95 % interval; None without any."""
    styles = looks(comparison)
    dots = [
        (arm.name, value, styles[arm.name], True)
        for arm in comparison.plan.arms
        if (value := estimate(list(values(comparison, arm.name, metric).values()))) is not None
    ]
    if not dots:
        return None
    unit = "share of right answers" if metric.task else "nats a token"
    return Chart(
        title=f"Final {'accuracy' if metric.task else 'held-out loss'}, {metric.title} ({unit})",
        svg=_dots(f"final-{name}", f"Final {metric.title} of each arm", dots, metric),
        caption=f"Mean and 95 % interval over seeds; {'more' if metric.task else 'less'} is better.",
    )


def differences(comparison: Comparison, metric: Metric, name: str) -> Chart | None:
    """The reference minus each baseline with 95 % intervals of the paired differences; None without any."""
    styles = looks(comparison)
    dots = []
    for test in paired_tests(comparison, metric):
        if test.difference is None:
            continue
        value = Estimate(n=test.n, mean=test.difference, low=test.low, high=test.high)
        dots.append((test.baseline, value, styles[test.baseline], test.verdict in ("better", "worse")))
    reference = comparison.plan.reference_arm
    if not dots or reference is None:
        return None
    unit = "share of right answers" if metric.task else "nats a token"
    side = "right" if metric.task else "left"
    return Chart(
        title=f"{shorten(reference.name, 40)} minus each baseline, {metric.title} ({unit})",
        svg=_dots(f"difference-{name}", f"Differences to each baseline, {metric.title}", dots, metric, zero=True),
        caption=f"Paired by seed, with 95 % intervals; {side} of the line the reference is better. Filled: p after "
        "Holm's correction is below 0.05.",
    )


_Dot = tuple[str, Estimate, Look, bool]  # name, value, look, filled


def _dots(name: str, label: str, dots: Sequence[_Dot], metric: Metric, zero: bool = False) -> str:
    """A row for each."""

    def paint(axes: Axes) -> None:
        for row, (_, value, look, filled) in enumerate(dots):
            _dot(axes, row, value, look, filled)
        svg.name_rows(axes, [dot[0] for dot in dots], _NAME_CELLS, least=2)
        _value_axis(axes, zero, (lambda x, _: f"{100 * x:.4g} %") if metric.task else (lambda x, _: svg.tick(x)))

    return svg.draw(name, label, _frame([dot[0] for dot in dots]), paint)


def _dot(
    axes: Axes, row: int, value: Estimate, look: Look, filled: bool, size: float = 7.5, arm: int | None = None
) -> None:
    if value.low is not None and value.high is not None:
        line = axes.plot([value.low, value.high], [row, row], color=look.color, linewidth=2, solid_capstyle="round")
        line[0].set_gid(None if arm is None else gid(f"span{row}", arm))
    # a hollow marker has the page's colour nowhere, so that it suits light and dark
    face = look.color if filled else "none"
    dot = axes.plot([value.mean], [row], look.marker, color=look.color, markerfacecolor=face, markersize=size)
    dot[0].set_gid(None if arm is None else gid(f"dot{row}", arm))


def _frame(names: Sequence[str]) -> svg.Frame:
    frame = svg.named_frame(names, _NAME_CELLS, 24, right=16, wide=6.1)
    return replace(frame, height=46 + 24 * max(len(names), 2))


def _value_axis(axes: Axes, zero: bool, text: Callable[[float, object], str]) -> None:
    svg.value_axis(axes, text, 4)
    axes.margins(x=0.08)
    if zero:
        axes.axvline(0, color=svg.MUTED, linewidth=1)


def compared_to(comparison: Comparison) -> str | None:
    """The arm that sources are compared to: a plain small batch, the sorted one first, at the reference's budget, else
    any plain small batch, else the first baseline; None without a baseline that has runs."""
    plan = comparison.plan
    reference = plan.reference_arm
    found = [arm for arm in plan.baselines if comparison.of(arm.name) and arm is not reference]
    budget = reference.budget if reference is not None else ""
    found.sort(key=lambda arm: (arm.method not in _SMALL, arm.budget != budget, arm.method != _SMALL[0]))
    return found[0].name if found else None


def source_differences(comparison: Comparison) -> Chart | None:
    """Each arm's final loss on each source minus that of the plain small batch, paired by seed; None without any."""
    base = compared_to(comparison)
    if base is None:
        return None
    arms = [arm.name for arm in comparison.plan.arms]
    styles, names = looks(comparison), list(comparison.sources)
    found: list[tuple[int, int, Estimate]] = []  # row, arm, value
    for row, source in enumerate(names[:MOST_SOURCES]):
        theirs = source_values(comparison, base, source)
        for i, arm in enumerate(arms):
            ours = source_values(comparison, arm, source) if arm != base else {}
            value = estimate([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
            if value is not None:
                found.append((row, i, value))
    if not found:
        return None
    first = shown_first(comparison)
    ends = [v.mean for _, i, v in found if arms[i] in first] or [v.mean for *_, v in found]
    reference = comparison.plan.reference_arm

    def paint(axes: Axes) -> None:
        for row, i, value in sorted(found, key=lambda each: styles[arms[each[1]]].wide):
            main = reference is not None and arms[i] == reference.name
            shown = value if main else Estimate(n=value.n, mean=value.mean, low=None, high=None)
            _dot(axes, row, shown, styles[arms[i]], main, 8 if main else 5.5, arm=i)
        svg.name_rows(axes, names[:MOST_SOURCES], _NAME_CELLS, least=2)
        _value_axis(axes, True, lambda x, _: svg.tick(x))
        room = 0.12 * (max(*ends, 0.0) - min(*ends, 0.0)) or 0.1
        axes.set_xlim(min(*ends, 0.0) - room, max(*ends, 0.0) + room)

    more = len(names) - MOST_SOURCES
    return Chart(
        title=f"Final held-out loss by source minus that of {shorten(base, 40)} (nats a token)",
        svg=svg.draw("sources", f"Differences to {base} by source", _frame(names[:MOST_SOURCES]), paint),
        caption="Paired by seed; left of the line is better. Filled, with its 95 % interval: the reference."
        + (f" {more} more sources are in the table only." if more > 0 else ""),
    )
