"""`corebatch subset`: a data set goes in, the kept rows of it with a column `weight` and a report come out.

Everything that a model says of a row is kept in `scored/` of the output folder, block by block, so that a killed pass
goes on and another share or method costs no second pass. The outputs are written to temporary names and moved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from corebatch.config.building import NO_COLUMN, SOURCE_COLUMN, load_tokenizer, read_mixture
from corebatch.config.settings import settings_from
from corebatch.errors import ConfigError
from corebatch.files import write_json
from corebatch.launch.subset_job import SubsetJob
from corebatch.launch.subset_settings import SubsetSettings
from corebatch.mixture import Mixture, row_lengths, row_sources
from corebatch.mixture.writing import WEIGHT, KeptRows, named, write_kept
from corebatch.record.data_identity import content
from corebatch.record.folder_lock import LOCK, OWNER, owned
from corebatch.rendering.sheet import table
from corebatch.subset import Subset
from corebatch.text import say

REPORT, SCORED = "subset.json", "scored"
STANDS_FOR = {
    "pool": "the kept rows stand for the data",
    "target": "the kept rows follow the target, and not the data",
    "difficulty": "the kept rows follow their difficulty, and no mean of the data",
}
_OURS = ("data*.jsonl", "data*.parquet", "part-*.jsonl", "part-*.parquet", ".*.part", REPORT, SCORED, LOCK, OWNER)


def write_subset(values: Mapping[str, Any], where: str, console: Console) -> Path:
    """Chooses the subset of a config, or goes on, and returns its folder.

    Args:
        values: the keys of the config, `subset` among them.
        where: the config's name, for errors.

    Raises:
        CorebatchError: whatever can be wrong with settings, data and models, and a folder with something else in it;
            nothing is overwritten then.
    """
    own = SubsetSettings.from_dict(values.get("subset"))
    settings = settings_from(dict(values), where)
    folder = Path(own.output or f"{settings.training['output_dir'].rstrip('/')}-subset")
    check_folder(folder, settings.overwrite)
    job = SubsetJob.of(settings, own, folder / SCORED, console)
    tokenizer = load_tokenizer(job.settings.model)
    mixture = read_mixture(job.settings, tokenizer)
    with owned(folder):
        check_folder(folder, settings.overwrite)
        kept = job.choose(mixture, tokenizer)
        rows, weights = kept.rows.numpy(), kept.ones.numpy()
        column = settings.coreset.weight_column
        if column is not None:
            weights = weights * np.array(mixture.dataset.select(rows)[column])
        source_column = settings.coreset.source_column
        source_column = SOURCE_COLUMN if source_column == NO_COLUMN else source_column
        wanted = KeptRows(
            mixture=mixture, rows=rows, weights=weights, source_column=source_column, weight_column=column
        )
        before = [path for pattern in _OURS[:5] for path in folder.glob(pattern)]
        parts = write_kept(wanted, folder)
        (folder / REPORT).unlink(missing_ok=True)  # while files are replaced, the folder is not finished
        files = named(parts)
        for path in before:
            if path not in files:
                path.unlink(missing_ok=True)
        report = report_of(job, mixture, kept, weights, files)
        write_json(folder / REPORT, report)
    tell(report, files, source_column, console)
    return folder


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raises ConfigError for a finished subset that is not to be overwritten, or a folder with something else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"subset.output: {folder} is a file. Expected a folder.")
    if (folder / REPORT).exists() and not overwrite:
        raise ConfigError(
            f"subset.output: {folder} holds a finished subset, and nothing in it is overwritten. Choose another "
            "folder, or give --overwrite true: what is scored for the same rows and model is kept."
        )
    ours = {path for pattern in _OURS for path in folder.glob(pattern)}
    foreign = sorted(path.name for path in folder.iterdir() if path not in ours)
    if foreign:
        raise ConfigError(f"subset.output: {folder} should be empty or a subset's. Found {foreign[0]}.")


def report_of(job: SubsetJob, mixture: Mixture, kept: Subset, weights: Any, files: list[Path]) -> dict[str, Any]:
    """What `subset.json` holds."""
    own = job.own
    return {
        "method": own.method,
        "options": dict(own.options),
        "keep": own.keep,
        "rows": len(kept.rows),
        "of": len(mixture.dataset),
        "follows": own.made.follows,
        "seed": job.seed,
        "sources": by_source(mixture, kept, weights),
        "told": dict(kept.told),
        "seconds": {name: round(value, 3) for name, value in job.seconds.items()},
        "data": {"rows": len(mixture.dataset), **content(mixture.dataset)},
        "models": job.models,
        "settings": dataclasses.asdict(own),
        "files": [path.name for path in files],
    }


def by_source(mixture: Mixture, kept: Subset, weights: Any) -> dict[str, dict[str, float]]:
    """Of each source the rows and tokens before and after, and the mean weight of the kept rows."""
    names = list(mixture.counts)
    number = {name: i for i, name in enumerate(names)}
    source_N = np.array([number[name] for name in row_sources(mixture.dataset)])
    length_N, rows = row_lengths(mixture.dataset), kept.rows.numpy()
    found = {}
    for name, i in number.items():
        mine = source_N[rows] == i
        found[name] = {
            "rows": int((source_N == i).sum()),
            "kept": int(mine.sum()),
            "share_kept": round(float(mine.sum() / max(1, (source_N == i).sum())), 4),
            "tokens": int(length_N[source_N == i].sum()),
            "tokens_kept": int(length_N[rows][mine].sum()),
            "mean_weight": round(float(weights[mine].mean()), 4) if mine.any() else 0.0,
        }
    return found


def tell(report: Mapping[str, Any], files: list[Path], source_column: str, console: Console) -> None:
    """Prints what was kept, and how it is trained on."""
    console.print(table("Kept by source", [{"source": name, **row} for name, row in report["sources"].items()]))
    seconds = report["seconds"]
    say(
        console,
        f"{report['rows']:,} of {report['of']:,} rows by {report['method']}: {STANDS_FOR[report['follows']]}. Scoring "
        f"took {seconds['scoring']:.1f} s and choosing {seconds['choosing']:.1f} s, which are part of its price.",
    )
    entries = ", ".join(f"{{path: {path}}}" for path in files)
    column = "" if source_column == SOURCE_COLUMN else f", source_column: {source_column}"
    say(console, f"Train on it with datasets: [{entries}] and coreset: {{weight_column: {WEIGHT}{column}}}.")
