"""Two plots: the effective batch against the budget, and the frontier of what a step is worth against what it costs;
both over the longest window."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corebatch.bench.gradients.lines import longest
from corebatch.files import replacing


def plot(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Effective batch against the budget, a line for each method, a panel for each moment; in Adam's metric where
    there is one. Needs matplotlib (extra `report`)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric = "adam" if any(line["metric"] == "adam" for line in lines) else "raw"
    lines = [line for line in lines if line["metric"] == metric]
    moments = sorted({line["after_steps"] for line in lines})
    figure = Figure(figsize=(5.5 * len(moments), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for number, moment in enumerate(moments):
        axes = figure.add_subplot(1, len(moments), number + 1)
        here = [line for line in lines if line["after_steps"] == moment]
        for index, method in enumerate(dict.fromkeys(line["method"] for line in here)):
            points = sorted((line["budget"], effective(line)) for line in here if line["method"] == method)
            style = ("-", "--", ":")[index // 10 % 3]
            axes.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=method)
        axes.set_title(f"after {moment} steps")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("small batch M")
        axes.set_ylabel(f"effective batch / N over {longest(here[0])} steps ({metric} metric)")
        axes.set_ylim(0, 1.05)
    axes.legend(fontsize=6)
    save_figure(figure, path)


def effective(line: dict[str, Any]) -> float:
    """n / N over the longest window."""
    return float(line["windows"][longest(line)]["effective"])


def frontier_points(line: dict[str, Any]) -> tuple[float, float]:
    """(cost by tokens, effective batch) of a measurement, both by those of accumulating N random examples; at the
    first c that was given, else at the measured one."""
    at = next(iter(line["cost_ratios"].values()), line)
    return at["cost_tokens"] / line["large"], effective(line)


def envelope(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those points that no other one beats: nothing cheaper is worth as much. By rising cost."""
    kept: list[tuple[float, float]] = []
    for cost, worth in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or worth > kept[-1][1]:
            kept.append((cost, worth))
    return kept


def plot_frontier(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel for each moment, a point for each method and budget, their upper envelope, and y = x for random
    accumulation; in Adam's metric where there is one. Needs matplotlib (extra `report`)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric = "adam" if any(line["metric"] == "adam" for line in lines) else "raw"
    lines = [line for line in lines if line["metric"] == metric]
    moments = sorted({line["after_steps"] for line in lines})
    figure = Figure(figsize=(5.5 * len(moments) + 4, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = None
    for number, moment in enumerate(moments):
        axes = figure.add_subplot(1, len(moments), number + 1)
        here = [line for line in lines if line["after_steps"] == moment]
        everything = [frontier_points(line) for line in here]
        for index, method in enumerate(dict.fromkeys(line["method"] for line in here)):
            points = sorted(frontier_points(line) for line in here if line["method"] == method)
            marker = "os^D"[index // 10 % 4]
            axes.plot(*zip(*points, strict=True), ":", marker=marker, markersize=4, linewidth=0.6, label=method)
        best = envelope(everything)
        axes.step(*zip(*best, strict=True), where="post", color="black", linewidth=1, label="upper envelope")
        ends = [min(min(point) for point in everything), max(max(point) for point in everything)]
        axes.plot(ends, ends, color="grey", linewidth=1, linestyle="--", label="random accumulation")
        given = next(iter(here[0]["cost_ratios"]), None)
        axes.set_title(f"after {moment} steps, c = {given or format(here[0]['c'], '.2f')}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xlabel("cost of a step by tokens / cost of training N")
        axes.set_ylabel(f"effective batch / N over {longest(here[0])} steps ({metric} metric)")
    if axes is not None:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=6)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Whole or not at all."""
    with replacing(path) as part:
        figure.savefig(part, dpi=120, format=path.suffix[1:] or None)
