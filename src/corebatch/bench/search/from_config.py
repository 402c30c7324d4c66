"""A search out of a config: what is varied, what is measured, and all that is wrong with it before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from corebatch.bench.runs.arms import make_arms
from corebatch.bench.runs.from_config import Parts, reference_steps, split_rows
from corebatch.bench.runs.processes import Processes
from corebatch.bench.runs.settings import CompareSettings, TuneSettings
from corebatch.bench.search.engine import REST, Search
from corebatch.bench.search.settings import SearchSettings
from corebatch.config.building import load_tokenizer, read_mixture
from corebatch.config.settings import settings_from
from corebatch.errors import ConfigError
from corebatch.mixture import Mixture
from corebatch.options import hint


def search_of(values: Mapping[str, Any], where: str, console: Console) -> Search:
    """The search of a config's keys. `where`: the config's name, for errors.

    Raises:
        ConfigError: settings that do not go together, or name what is not there.
    """
    own = SearchSettings.from_dict(values.get("search"))
    settings = settings_from(dict(values), where)
    block = dict(values.get("coreset") or {})
    _check_unsearched(block)
    if not settings.data.eval_datasets:
        raise ConfigError(f"{where}: a search needs held-out data: the key 'eval_datasets' is missing.")
    settings = dataclasses.replace(settings, coreset=settings.coreset.changed(objective="drawn"))
    held = CompareSettings.from_dict(values.get("compare"))
    arms = make_arms((), {}, settings.coreset, {**block, "objective": "drawn"}, settings.training)
    # Rows by which shares are found are not those by which they are measured.
    tune = dataclasses.replace(TuneSettings(), held_out=held.tune.held_out, rows=held.tune.rows)
    compare = dataclasses.replace(held, arms=(), tasks=(), tune=tune, processes=own.processes)
    parts = Parts(settings=settings, own=compare, arms=arms, metric="token")
    tokenizer = load_tokenizer(settings.model)
    train = read_mixture(settings, tokenizer)
    names, shares = _searched(own, train)
    sources = read_mixture(settings, tokenizer, evaluation=True).dataset["source"]
    _check_metric(own, sources, split_rows(sources, tune.held_out))
    _check_models(own, settings, tokenizer)
    return Search(
        settings=own,
        names=names,
        own=shares,
        steps=own.steps or reference_steps(settings, len(train.dataset), arms[0].rows_drawn),
        values=values,
        folder=Path(settings.training["output_dir"]),
        workers=Processes(parts),
        console=console,
    )


def _check_unsearched(block: Mapping[str, Any]) -> None:
    """Raises ConfigError: the config sets what the search does."""
    if block.get("sampling") is not None:
        raise ConfigError(f"coreset.sampling is what a search finds. Found {block['sampling']!r}: leave it out.")
    if block.get("objective", "drawn") != "drawn":
        raise ConfigError(
            "coreset.objective should be left out, or drawn: a search varies what is trained by what is drawn. Found "
            f"{block['objective']!r}."
        )


def _searched(own: SearchSettings, train: Mixture) -> tuple[list[str], list[float]]:
    """Names of the shares, and the data's own. Raises ConfigError: a source that is not there, or fewer than two."""
    sources = list(train.dataset["source"])
    rows = {name: sources.count(name) / len(sources) for name in sorted(set(sources))}
    names = list(own.sources or rows)
    for name in names:
        if name not in rows:
            raise ConfigError(
                f"search.sources should name sources of the data: {', '.join(rows)}. Found {name!r}.{hint(name, rows)}"
            )
    shares = [rows[name] for name in names]
    if len(names) < len(rows):
        names, shares = [*names, REST], [*shares, sum(rows[name] for name in rows if name not in names)]
    if len(names) < 2:
        raise ConfigError(f"A search for shares needs at least two sources. Found {', '.join(names)}.")
    return names, shares


def _check_metric(own: SearchSettings, sources: Sequence[str], split: tuple[list[int], list[int]]) -> None:
    """Raises ConfigError: a source that no held-out row is of, or too few rows of it for both halves."""
    wanted = {name for name, weight in own.metric.items() if weight} if isinstance(own.metric, Mapping) else set()
    for rows, what in zip(split, ("finds", "is measured by"), strict=True):
        there = {sources[row] for row in rows}
        missing = sorted(wanted - there) or ([] if there else ["any source"])
        if missing:
            raise ConfigError(
                f"search.metric needs held-out rows of {', '.join(missing)} among those by which the search {what}. "
                f"Found rows of {', '.join(sorted(there)) or 'no source'}."
            )


def _check_models(own: SearchSettings, settings: Any, tokenizer: Any) -> None:
    """Raises ConfigError: a smaller model with another vocabulary."""
    for fidelity in own.fidelities:
        path = fidelity.model_name_or_path
        if path is None:
            continue
        other = load_tokenizer(dataclasses.replace(settings.model, model_name_or_path=path))
        if other.get_vocab() != tokenizer.get_vocab():
            raise ConfigError(
                f"search.fidelities: {path} should have the vocabulary of {settings.model.model_name_or_path}, whose "
                f"tokens it is given. Found {len(other)} tokens, and {len(tokenizer)}."
            )
