"""Draws docs/pictures: what happens once, each epoch and each step. Three sources have three colors; a square is a row.

    python docs/site/pictures.py

Colors are variables, light and dark by the reader's setting; on the site, by the page's (site.css).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "pictures"
WIDTH = 600
STYLE = """<style>
svg.picture { --ink: #1f2328; --soft: #59636e; --line: #afb8c1; --one: #4263eb; --two: #e8590c; --three: #2b8a3e }
@media (prefers-color-scheme: dark) { svg.picture {
  --ink: #e6edf3; --soft: #9ea7b3; --line: #59636e; --one: #748ffc; --two: #ff922b; --three: #51cf66 } }
svg.picture text { font: 14px system-ui, sans-serif; fill: var(--ink) }
svg.picture text.soft { font-size: 12.5px; fill: var(--soft) }
svg.picture text.key { font: 12.5px ui-monospace, monospace; fill: var(--soft) }
</style>"""
COLORS = ("var(--one)", "var(--two)", "var(--three)")


def row(x: float, y: float, source: int, *, size: float = 14, faint: bool = False) -> str:
    """A row of the data; one that is left out is an outline."""
    look = f'fill="none" stroke="{COLORS[source]}" stroke-opacity=".45"' if faint else f'fill="{COLORS[source]}"'
    return f'<rect x="{x:g}" y="{y:g}" width="{size:g}" height="{size:g}" rx="2.5" {look}/>'


def text(x: float, y: float, words: str, *, kind: str = "", middle: bool = False) -> str:
    """A line of text; its left end or its middle is at x."""
    anchor = ' text-anchor="middle"' * middle
    return f'<text x="{x:g}" y="{y:g}" class="{kind}"{anchor}>{words}</text>'


def arrow(x1: float, y1: float, x2: float, y2: float, bend: str = "") -> str:
    """From one point to another; `bend` are the points of a path between."""
    line = f'<path d="M {x1:g} {y1:g} {bend} L {x2:g} {y2:g}" fill="none" stroke="var(--line)" stroke-width="1.6"'
    return f'{line} marker-end="url(#head)"/>'


def frame(x: float, y: float, width: float, height: float) -> str:
    """What belongs together."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="none" stroke="var(--line)"/>'


def grid(x: float, y: float, sources: Sequence[int], columns: int, faint: Callable[[int], bool]) -> list[str]:
    """Rows side by side, so many in a line."""
    places = [(x + 18 * (i % columns), y + 18 * (i // columns)) for i in range(len(sources))]
    return [row(*place, source, faint=faint(i)) for i, (place, source) in enumerate(zip(places, sources, strict=True))]


def mixed(counts: Sequence[int], seed: int) -> list[int]:
    """So many rows of each source in a drawn order."""
    rows = [source for source, count in enumerate(counts) for _ in range(count)]
    random.Random(seed).shuffle(rows)
    return rows


def once() -> tuple[int, str, list[str]]:
    """`corebatch subset`."""
    data = mixed((42, 15, 7), 3)
    kept = sorted(random.Random(5).sample(range(len(data)), 20))
    sizes = {0: 14.0, 1: 10.0, 2: 18.0}
    parts = [text(0, 16, "every row of the data"), *grid(0, 28, data, 8, lambda i: i not in kept)]
    parts += [arrow(160, 98, 250, 98), text(205, 86, "subset", middle=True)]
    parts += [text(205, 118, "by text, loss", kind="soft", middle=True)]
    parts += [text(205, 134, "or features", kind="soft", middle=True)]
    parts += [text(270, 16, "rows that are kept, with weights")]
    for place, i in enumerate(kept):
        size = sizes[(i * 7) % 3]
        x, y = 280 + 26 * (place % 5), 38 + 30 * (place // 5)
        parts.append(row(x + (18 - size) / 2, y + (18 - size) / 2, data[i], size=size))
    parts += [arrow(425, 98, 480, 98), text(490, 94, "data.jsonl"), text(490, 112, "and training", kind="soft")]
    parts += [text(0, 196, "subset: {method: ccs, keep: 0.3}", kind="key")]
    return 204, "Once: a subset of the rows is kept, each with a weight, and written as a data set", parts


def each_epoch() -> tuple[int, str, list[str]]:
    """`coreset.sampling`."""
    lines = (
        ("as the data are", (18, 5, 2), "", 1, 0),
        ("sources drawn by shares", (10, 8, 7), "sampling: {shares: {b: 0.32, c: 0.28}}", 4, 0),
        ("learnt rows left out of a pass", (18, 5, 2), "sampling: {learnt: infobatch}", 7, 9),
    )
    parts = []
    for number, (title, counts, key, seed, left_out) in enumerate(lines):
        y = 16 + 70 * number
        out = random.Random(seed).sample(range(25), left_out)
        parts += [text(0, y, title), *grid(0, y + 12, mixed(counts, seed), 25, lambda i, out=out: i in out)]
        parts += [text(0, y + 44, key, kind="key"), arrow(455, y + 19, 510, y + 19), text(520, y + 24, "to steps")]
    return 204, "Each epoch: which rows come, and how often those of each source", parts


def each_step() -> tuple[int, str, list[str]]:
    """The step."""
    pool, chosen = mixed((10, 4, 2), 11), {1: 18.0, 4: 12.0, 10: 14.0, 15: 10.0}
    parts = [text(0, 16, "large batch"), frame(0, 26, 84, 84), *grid(8, 34, pool, 4, lambda i: False)]
    parts += [
        arrow(92, 68, 146, 68),
        text(119, 56, "features", middle=True),
        text(119, 86, "by default", kind="soft", middle=True),
    ]
    parts += [text(119, 101, "of labels", kind="soft", middle=True)]
    parts += [text(158, 16, "choice"), frame(158, 26, 84, 84), *grid(166, 34, pool, 4, lambda i: i not in chosen)]
    parts += [arrow(250, 68, 304, 68), text(277, 56, "weights", middle=True)]
    parts += [text(316, 16, "small batch"), frame(316, 26, 84, 84)]
    for place, (i, size) in enumerate(chosen.items()):
        x, y = 332 + 32 * (place % 2), 42 + 32 * (place // 2)
        parts.append(row(x + (18 - size) / 2, y + (18 - size) / 2, pool[i], size=size))
    parts += [arrow(408, 68, 462, 68), text(435, 56, "by length", middle=True)]
    parts += [text(472, 16, "micro-batches"), frame(472, 26, 110, 38), frame(472, 72, 110, 38)]
    widths = ((480, 37, 52.0, 1), (480, 51, 60.0, 4), (480, 83, 94.0, 10), (480, 97, 90.0, 15))
    parts += [
        f'<rect x="{x}" y="{y - 5}" width="{w}" height="10" rx="2.5" fill="{COLORS[pool[i]]}"/>'
        for x, y, w, i in widths
    ]
    parts += [arrow(527, 118, 527, 146), text(527, 164, "update", middle=True)]
    parts += [
        arrow(498, 159, 200, 120, "L 200 159"),
        text(210, 180, "what the choice missed is carried into the next one", kind="soft"),
    ]
    parts += [text(0, 204, "pool_factor: 4, selector: auto, feedback: auto, micro_batches: auto", kind="key")]
    return 212, "Each step: of a large batch a small one is chosen, weighted, cut into micro-batches and trained", parts


DRAWN = {"once": once, "each_epoch": each_epoch, "each_step": each_step}


def picture(name: str) -> str:
    """One of DRAWN as SVG."""
    height, what, parts = DRAWN[name]()
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M 0 0 L 8 4 L 0 8 z" fill="var(--line)"/></marker></defs>'
    )
    box = f'viewBox="-4 0 {WIDTH} {height}" role="img" aria-label="{what}"'
    body = "\n".join([STYLE, head, *parts])
    return f'<svg class="picture" xmlns="http://www.w3.org/2000/svg" {box}>\n{body}\n</svg>\n'


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in DRAWN:
        (FOLDER / f"{each}.svg").write_text(picture(each))
