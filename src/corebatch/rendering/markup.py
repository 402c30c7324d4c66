"""Small pieces of HTML; every text from outside goes through `esc`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from corebatch.rendering import formats
from corebatch.rendering.chart import Chart, Key, Scale


def esc(text: object) -> str:
    """Text made safe for HTML, in content and in attributes."""
    return html.escape(formats.clean(str(text)), quote=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table whose first column is text and whose others are numbers; it scrolls on narrow screens."""
    head = "".join(f'<th scope="col">{esc(name)}</th>' for name in header)
    body = "\n".join(
        f'<tr><th scope="row">{esc(first)}</th>' + "".join(f"<td>{esc(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    title = f"<caption>{esc(caption)}</caption>" if caption else ""
    inner = f"{title}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{inner}</table></div>'


def pairs(values: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> str:
    """Names and values, nested objects flattened with dots."""
    items = values.items() if isinstance(values, Mapping) else values
    rows = "\n".join(
        f"<tr><th scope='row'>{_breakable(key)}</th><td>{esc(text)}</td></tr>" for key, text in _flat(items)
    )
    return f'<div class="scroll"><table class="pairs"><tbody>{rows}</tbody></table></div>'


def _breakable(key: str) -> str:
    """A name that may be broken after its underscores and dots."""
    return esc(key).replace("_", "_<wbr>").replace(".", ".<wbr>")


def _flat(items: Iterable[tuple[str, Any]], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in items:
        if isinstance(value, Mapping) and value:
            yield from _flat(value.items(), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _value(value)


def _value(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(item) for item in value) or "none"
    return str(value)


def figure(chart: Chart) -> str:
    """A chart with its title above, its legend, and how to read it below."""
    svg = f'<div class="plot">{chart.svg}</div>'
    if chart.narrow:
        svg = f'<div class="plot on-wide">{chart.svg}</div><div class="plot on-narrow">{chart.narrow}</div>'
    if chart.panels:
        inner = "".join(f"<div><h4>{esc(name)}</h4>{drawing}</div>" for name, drawing in chart.panels)
        svg = f'<div class="plot panels">{inner}</div>'
    keys = "".join(_key(key) for key in chart.keys)
    legend = f'<ul class="legend">{keys}</ul>'  # empty ones too: a chart is always four rows
    caption = f'<p class="read">{esc(chart.caption)}</p>'
    kind = "chart full" if chart.narrow or chart.panels else "chart"
    title = f"<figcaption>{esc(chart.title)}</figcaption>"
    return f'<figure class="{kind}">{title}{legend}<div>{svg}</div>{caption}</figure>'


def _key(key: Key | Scale) -> str:
    if isinstance(key, Scale):
        cells = "".join(f'<i style="--key:var(--{name});opacity:{opacity:g}"></i>' for name, opacity in key.colours)
        return f'<li>{esc(key.low)}<span class="scale">{cells}</span>{esc(key.high)}</li>'
    return f'<li><i class="{key.mark}" style="--key:var(--{key.variable})"></i>{esc(key.name)}</li>'


def figures(charts: Iterable[Chart | None], aligned: bool = False) -> str:
    """Those charts that there are, in a grid; nothing for none. Aligned: neighbours' drawings begin level."""
    found = "\n".join(figure(chart) for chart in charts if chart is not None)
    kind = "charts aligned" if aligned else "charts"
    return f'<div class="{kind}">{found}</div>' if found else ""


def section(title: str, *parts: str) -> str:
    """A section with its heading; nothing when all its parts are empty."""
    found = "\n".join(part for part in parts if part)
    return f"<section><h2>{esc(title)}</h2>\n{found}</section>" if found else ""


def samples(title: str, entries: Iterable[tuple[str, str]]) -> str:
    """Texts one below the other, each under a line on what it is; nothing for none."""
    found = "\n".join(f"<li><p>{esc(about)}</p><p class='text'>{esc(text)}</p></li>" for about, text in entries)
    return f'<div><h3>{esc(title)}</h3><ol class="samples">{found}</ol></div>' if found else ""


def details(title: str, content: str) -> str:
    """A part of the page that is folded at first."""
    return f"<details><summary>{esc(title)}</summary>{content}</details>"


def tiles(values: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers: value, name, and a line below."""
    found = "\n".join(
        f"<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd><dd class='below'>{esc(below)}</dd></div>"
        for value, name, below in values
    )
    return f'<dl class="tiles">{found}</dl>'
