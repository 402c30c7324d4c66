"""Draws with matplotlib into inline SVG whose colours are CSS variables, so that it suits light and dark.

No pyplot and no state left behind; a user's matplotlibrc has no influence, and the same input gives the same
bytes. Lengths are in pixels of the page at the drawing's natural width.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Affine2D
from rich.cells import cell_len

from corebatch.rendering import formats

HALF, WIDE = 370, 860  # natural widths: half of the page (and a phone), all of the page

INK, MUTED, GRID = "#1c2330", "#5d6675", "#dfe3e8"
POOL, CHOSEN, TRAINED = "#0072b2", "#d55e00", "#009e73"
EXTRA = ("#56b4e9", "#cc79a7", "#e69f00", "#7a5fc0", "#8a8f98")
"""Okabe and Ito's colours, told apart in all common kinds of colour blindness, and two more."""

VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    POOL: "pool",
    CHOSEN: "chosen",
    TRAINED: "trained",
    **{color: f"extra{i}" for i, color in enumerate(EXTRA)},
}

_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 11,
    "font.family": ["DejaVu Sans"],
    "path.simplify": True,
}
_LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Size of a drawing and the room around its axes."""

    width: int = HALF
    height: int = 215
    left: int = 46
    right: int = 12
    top: int = 10
    bottom: int = 36


def draw(name: str, label: str, frame: Frame, paint: Callable[[Axes], None]) -> str:
    """An `<svg>` element: `paint` fills the axes; `label` is what a screen reader says."""
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*missing from.*font.*")  # the browser has the glyph
        mpl.rcdefaults()
        mpl.rcParams.update({**_SETTINGS, "svg.hashsalt": name})
        figure = Figure(figsize=(frame.width / 72, frame.height / 72), dpi=72)
        canvas = FigureCanvasSVG(figure)
        inner = (frame.width - frame.left - frame.right, frame.height - frame.top - frame.bottom)
        axes = figure.add_axes(
            (frame.left / frame.width, frame.bottom / frame.height, inner[0] / frame.width, inner[1] / frame.height)
        )
        _style(axes)
        paint(axes)
        buffer = io.BytesIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue().decode("utf-8"), name, label, frame)


def _style(axes: Axes) -> None:
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.spines["bottom"].set_linewidth(0.8)
    axes.tick_params(colors=MUTED, length=0, pad=6, labelsize=10.5)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def named_frame(names: Sequence[str], cells: int, row: int, *, right: int = 12, wide: float = 6.4) -> Frame:
    """A frame with a row of a height for each name, and room for the names, which `name_rows` cuts to so many cells.
    `wide`: pixels of a cell."""
    left = 14 + round(wide * max(cell_len(formats.shorten(name, cells)) for name in names))
    return Frame(height=46 + row * len(names), left=left, right=right)


def name_rows(axes: Axes, names: Sequence[str], cells: int, least: int = 1) -> None:
    """Names the rows of the vertical axis, from the top; it has room for at least so many."""
    axes.set_yticks(range(len(names)), [formats.shorten(name, cells) for name in names])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(max(len(names), least) - 0.4, -0.6)


def value_axis(axes: Axes, text: Callable[[float, object], str], ticks: int) -> None:
    """Gives the horizontal axis the grid lines, and at most so many numbers, as `text` writes them."""
    axes.grid(False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(text))


def step_axis(axes: Axes) -> None:
    """Marks the horizontal axis as optimizer steps, in whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.compact(value)))
    axes.set_xlabel("optimizer step", color=MUTED, fontsize=10.5, loc="right", labelpad=4)


def step_limits(axes: Axes, first: int, last: int) -> None:
    """The horizontal axis from the first to the last step, with a little room."""
    room = 0.015 * (last - first) or 0.5
    axes.set_xlim(first - room, last + room)


def tick(value: float) -> str:
    """A short number: 0.5, 1.25, 12 k."""
    return formats.compact(value) if abs(value) >= 1e5 else f"{value:,.6g}"


def marker_path(marker: str, size: float) -> str:
    """One of matplotlib's markers as the `d` of a `<path>`, around the origin, `size` pixels wide."""
    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform() + Affine2D().scale(size, -size))
    return "".join(
        _LETTERS[code] + ("" if code == path.CLOSEPOLY else " ".join(f"{value:.2f}" for value in points))
        for points, code in path.iter_segments(simplify=False)
    )


def _inline(svg: str, name: str, label: str, frame: Frame) -> str:
    """Fit for a page: no prolog, own ids, CSS variables for colours, the page's font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]+>", lambda tag: _tag(tag[0], name), svg)  # text holds no bare < or >
    said = html.escape(formats.clean(label))
    start = f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{said}">'
    return re.sub(r"\s*\n\s*", "\n", start + svg[svg.index(">") + 1 :].rstrip())


def _tag(tag: str, name: str) -> str:
    tag = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", tag).replace("xlink:href", "href")
    tag = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", tag)
    tag = re.sub(r"font-family: ?[^;\"]*;? ?", "", tag)
    tag = re.sub(r"(font: )?([\d.]+)px '[^;\"]*", r"font-size: \2px", tag)
    return re.sub(r"#[0-9a-f]{6}\b", _variable, tag)


def _variable(found: re.Match[str]) -> str:
    name = VARIABLES.get(found[0])
    return f"var(--{name})" if name else found[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One entry of a legend: a name, the CSS variable of its colour, and how it is drawn."""

    name: str
    variable: str
    mark: str = "line"  # or "dash", "box", "dot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A legend of neighbouring colours (CSS variable, opacity) between two names."""

    low: str
    high: str
    colors: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What the page shows. The title says the units.

    Attributes:
        wide: an `<svg>` for half of a desktop's width and for phones, or for the full width (see `narrow`).
        narrow: where `wide` spans the page, the same drawn for a phone.
        panels: in place of `svg`: small drawings of one kind side by side, each with its name.
    """

    title: str
    svg: str = ""
    keys: tuple[Key | Scale, ...] = ()
    caption: str = ""
    narrow: str | None = None
    panels: tuple[tuple[str, str], ...] = ()
