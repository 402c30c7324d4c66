"""Writes `report.html`: what a run did, on one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from markupsafe import Markup

from corebatch.rendering import formats, page
from corebatch.report import rows
from corebatch.report.headline import headline
from corebatch.report.reading import read_run
from corebatch.report.record import RunRecord
from corebatch.report.summary import Summary
from corebatch.report.totals import summarise

_TEMPLATE = Path(__file__).parent / "templates" / "report.html"
_MOST_JSON = 400_000  # bytes; a longer summary is not embedded


def write_report(
    folder: str | PathLike[str], out: str | PathLike[str] | None = None, against: Sequence[str] = ()
) -> Path:
    """Write the page for a run folder and return its path.

    Args:
        folder: the run folder.
        out: the file to write, or an existing folder for `report.html`; the run folder itself by default.
        against: what a comparison found against plain training, in sentences.

    Raises:
        DataError: the run cannot be read; nothing is written.
        MissingExtraError: matplotlib is not installed.
    """
    page.require_matplotlib()
    run = read_run(folder)
    path = run.folder / "report.html" if out is None else Path(out)
    if path.is_dir():
        path = path / "report.html"
    return page.write(path, render(run, replace(summarise(run), against=tuple(against))))


def render(run: RunRecord, summary: Summary) -> str:
    """The page as text; the same run gives the same text."""
    from corebatch.report import sections  # draws, and so needs matplotlib

    (_, first), *others = headline(summary)
    epochs = f" ({summary.epochs:.3g} epochs)" if summary.epochs is not None else ""
    line = [summary.model or "model unknown", rows.method(summary), f"{rows.steps(summary.steps)}{epochs}"]
    if run.info.get("started"):
        line.append(f"started {run.info['started']}")
    return page.render(
        _TEMPLATE,
        name=summary.name,
        over="corebatch",
        command="corebatch report",
        title=first,
        lead=others,
        facts=" · ".join(line),
        notes=summary.notes,
        tiles=_tiles(summary),
        foot=f"Made from selection.jsonl by corebatch {run.info.get('corebatch') or 'version unknown'}",
        data=_embedded(summary),
        **sections.contents(run, summary),
    )


def _tiles(summary: Summary) -> list[tuple[str, str, str]]:
    share = summary.examples_trained / summary.examples_drawn if summary.examples_drawn else None
    shares = {phase.name: phase.share for phase in summary.phases}
    memory = [p.peak_memory_mb for p in summary.phases if p.peak_memory_mb is not None]
    mean = summary.phase_seconds / summary.steps if summary.phase_seconds else None
    speed = formats.compact(summary.trained_per_second)
    training, mfu = formats.percent(shares.get("train")), []
    if summary.mfu is not None:
        mfu = [f"MFU {formats.share(summary.mfu)}"]
    time = (training, "of time for training", ", ".join(mfu))
    scored = f"{formats.compact(summary.tokens_scored)} scored"
    if summary.scores:
        time = (formats.percent(shares.get("score")), "of time for scoring", ", ".join([f"{training} training", *mfu]))
    results = _results(summary)
    pool = (formats.percent(share), "of the pool trained", rows.examples(summary))
    return [
        *(results if len(results) == 2 else [*results, pool]),
        (formats.compact(summary.tokens_trained), "tokens trained", scored if summary.scores else "none scored"),
        (formats.duration(mean), "per step", f"{speed} trained tokens/s"),
        time,
        (f"{formats.compact(max(memory, default=None))} MB", "peak memory", "highest of all phases"),
    ]


def _results(summary: Summary) -> list[tuple[str, str, str]]:
    """What came of the run: answers where there are any, and a loss, held out if it can be; one or two."""
    found, known = [], {each.name: each.loss for each in summary.held_out}
    before, after = (e.overall if e else None for e in (summary.before, summary.after))
    if after is not None and after.total:
        below = f"{formats.percent(before.share)} before training" if before and before.total else "after training"
        found.append((formats.percent(after.share), "of answers right", below))
    name, loss = ("held-out loss", known[""]) if "" in known else ("training loss", summary.train_loss)
    below = "nats per token" if loss.first is None else f"nats per token, {formats.number(loss.first)} at first"
    return [*found, (formats.number(loss.last), name, below)]


def _embedded(summary: Summary) -> Markup:
    """The summary for machines; nothing in it can end the element."""
    text = summary.to_json()
    if len(text) > _MOST_JSON:
        return Markup()
    for found, safe in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(found, safe)
    return Markup(text)
