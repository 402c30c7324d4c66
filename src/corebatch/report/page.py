"""Writes `report.html`: what a run did, on one page that needs nothing else.

No network, no script, no external font: the page may be mailed or archived. Everything that comes from the
run is escaped, and a content policy forbids scripts besides.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from corebatch.rendering import formats, markup
from corebatch.rendering.page import POLICY, STYLE, require_matplotlib, write
from corebatch.report import rows, words
from corebatch.report.reading import read_run
from corebatch.report.record import RunRecord
from corebatch.report.summary import Summary
from corebatch.report.totals import summarise

_MOST_JSON = 400_000  # bytes; a longer summary is not embedded


def write_report(folder: str | PathLike[str], out: str | PathLike[str] | None = None) -> Path:
    """Write the page for a run folder and return its path.

    Args:
        folder: the run folder.
        out: the file to write, or an existing folder for `report.html`; the run folder itself by default.

    Raises:
        DataError: the run cannot be read; nothing is written.
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    run = read_run(folder)
    path = run.folder / "report.html" if out is None else Path(out)
    if path.is_dir():
        path = path / "report.html"
    return write(path, render(run, summarise(run)))


def render(run: RunRecord, summary: Summary) -> str:
    """The page as text; the same run gives the same text."""
    from corebatch.report.sections import sections  # draws, and so needs matplotlib

    style = STYLE.read_text(encoding="utf-8")
    body = "\n".join((_top(run, summary), *sections(run, summary), _foot(run)))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{markup.esc(summary.name)} · corebatch report</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
{_embedded(summary)}</body>
</html>
"""


def _top(run: RunRecord, summary: Summary) -> str:
    first, *others = words.headline(summary)
    told = " ".join(markup.esc(sentence) for sentence in others)
    notes = "".join(f"<li>{markup.esc(note)}</li>" for note in summary.notes)
    line = [summary.model or "model unknown", words.method(summary)]
    if run.info.get("started"):
        line.append(f"started {run.info['started']}")
    return "\n".join(
        (
            f'<header><p class="over">corebatch · {markup.esc(summary.name)}</p>',
            f"<h1>{markup.esc(first)}</h1>",
            f'<p class="lead">{told}</p>' if told else "",
            f'<p class="facts">{markup.esc(" · ".join(str(part) for part in line))}</p></header>',
            f'<ul class="notes">{notes}</ul>' if notes else "",
            markup.tiles(_tiles(summary)),
        )
    )


def _tiles(summary: Summary) -> list[tuple[str, str, str]]:
    share = summary.examples_trained / summary.examples_drawn if summary.examples_drawn else None
    shares = {phase.name: phase.share for phase in summary.phases}
    memory = [p.peak_memory_mb for p in summary.phases if p.peak_memory_mb is not None]
    mean = summary.phase_seconds / summary.steps if summary.phase_seconds else None
    speed = formats.compact(summary.trained_per_second)
    training = f"{formats.percent(shares.get('train'))} training"
    training += f", MFU {formats.share(summary.mfu)}" if summary.mfu is not None else ""
    epochs = f"{summary.epochs:.3g} epochs" if summary.epochs is not None else ""
    return [
        (formats.count(summary.steps), "optimizer steps", epochs),
        (formats.percent(share), "of the pool trained", rows.examples(summary)),
        (
            formats.compact(summary.tokens_trained),
            "tokens trained",
            f"{formats.compact(summary.tokens_scored)} scored",
        ),
        (formats.duration(mean), "per step", f"{speed} trained tokens/s"),
        (formats.percent(shares.get("score")), "of time for scoring", training),
        (f"{formats.compact(max(memory, default=None))} MB", "peak memory", "highest of all phases"),
    ]


def _embedded(summary: Summary) -> str:
    """The summary for machines; nothing in it can end the element."""
    text = summary.to_json()
    if len(text) > _MOST_JSON:
        return ""
    for found, safe in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(found, safe)
    return f'<script type="application/json" id="summary">{text}</script>\n'


def _foot(run: RunRecord) -> str:
    version = markup.esc(run.info.get("corebatch") or "version unknown")
    return f"<footer>Made from selection.jsonl by corebatch {version}; this page needs no network.</footer>"
