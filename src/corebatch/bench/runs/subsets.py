"""Arms that train on a subset: it is chosen once, before anything is trained, and its seconds are spent from the arm's
budget.

Every run of an arm, whatever its seed, has the same subset: choosing goes by the config's own seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from corebatch.bench.runs.arms import Arm
from corebatch.config.building import load_tokenizer, read_mixture
from corebatch.config.settings import Settings
from corebatch.errors import ConfigError
from corebatch.files import write_json
from corebatch.launch.subset import REPORT, SCORED, report_of
from corebatch.launch.subset_job import SubsetJob

KEPT = "kept.npz"
"""Rows of the train set, and their weights."""


def folder_of(settings: Settings, method: str) -> Path:
    """Where a method's subset lies, in the comparison's folder."""
    return Path(settings.training["output_dir"]) / "subsets" / method


def job_of(arm: Arm, settings: Settings) -> SubsetJob:
    """Raises ConfigError: what a subset cannot be chosen of."""
    assert arm.method.subset is not None
    try:
        return SubsetJob.of(
            settings, arm.method.subset, folder_of(settings, arm.method.name) / SCORED, Console(quiet=True)
        )
    except ConfigError as error:
        raise ConfigError(f"The arm {arm.method.name}: {error}") from error


def choose_rows(arm: Arm, settings: Settings) -> dict[str, Any]:
    """Chooses an arm's rows of the train set into its folder, and says how many they are and how long it took.

    Raises:
        CorebatchError: data, models and options do not go together, or fewer rows are kept than a step draws.
    """
    job = job_of(arm, settings)
    tokenizer = load_tokenizer(job.settings.model)
    mixture, trained = read_mixture(job.settings, tokenizer), read_mixture(settings, load_tokenizer(settings.model))
    subset = job.choose(mixture, tokenizer)
    # The model that scores may have a tokenizer of its own, by which other rows have no trained token and are left out.
    row_of = {place: row for row, place in enumerate(trained.places)}
    places = np.asarray(mixture.places)[subset.rows.numpy()]
    there = np.array([place in row_of for place in places.tolist()])
    rows = np.array([row_of[place] for place in places[there].tolist()], dtype=np.int64)
    weights = subset.ones.numpy()[there]
    if len(rows) < arm.rows_drawn:
        raise ConfigError(
            f"The arm {arm.method.name} should keep the {arm.rows_drawn} rows that its step draws, at least. Found "
            f"{len(rows)}: raise keep."
        )
    folder = folder_of(settings, arm.method.name)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / KEPT, rows=rows, weights=weights)
    write_json(folder / REPORT, report_of(job, mixture, subset, subset.ones.numpy(), []))
    return {"rows": len(rows), "of": len(trained.dataset), "seconds": dict(job.seconds)}


def kept_rows(arm: Arm, settings: Settings, train: Any) -> Any:
    """What an arm trains on: the train set, or the rows of it that were chosen, with their weights where they have
    any."""
    if arm.method.subset is None:
        return train
    with np.load(folder_of(settings, arm.method.name) / KEPT) as kept:
        found, weights, column = train.select(kept["rows"]), kept["weights"], arm.coreset.weight_column
    if not arm.method.weighs_rows or column is None:
        return found
    if column in found.column_names:
        weights, found = weights * np.asarray(found[column]), found.remove_columns(column)
    return found.add_column(column, weights)


def seconds_of(line: Mapping[str, Any]) -> float:
    """What a preparation took, by its line."""
    return float(sum(line["seconds"].values()))
