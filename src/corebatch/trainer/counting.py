"""What a step's claim needs of the data set: trained tokens by source, and every example's own weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from corebatch.batch.claims import Claims, TokenCounts
from corebatch.errors import ConfigError, DataError
from corebatch.model.rows import trained_tokens
from corebatch.options import hint
from corebatch.sampling.collating import SourceCollator
from corebatch.sampling.tags import DEFAULT_COLUMN, Sources, has_transform, is_stream, name_hash, tag
from corebatch.seeds import random_states
from corebatch.trainer.config import CoresetConfig
from corebatch.trainer.online import check_held_out
from corebatch.types import SOURCE

ROWS_AT_ONCE = 256


def count_source_tokens(
    dataset: Any, collator: Callable[[list[Any]], Any], source_column: str = DEFAULT_COLUMN, *, rows: int | None = None
) -> dict[str, int]:
    """Trained tokens of each source, by name: a pass over a data set or a stream, for `CoresetConfig.source_tokens`.

    Args:
        dataset: as the Trainer is given it.
        collator: as the Trainer has it; makes `labels`.
        source_column: the column that names an example's source.
        rows: how many rows are read; None: all. A part of a shuffled stream gives shares that are nearly right.
    """
    made, sources = tag(dataset, source_column, needed=True)
    numbers = _trained(islice(iter(made), rows), SourceCollator(collator, source_column))
    return {sources.names[source]: numbers[source] for source in sorted(numbers)}


def make_claims(trainer: Any, dataset: Any, sources: Sources) -> Claims:
    """What the steps of a run claim.

    Args:
        dataset: the train set with ids and sources.
        sources: its sources.

    Raises:
        ConfigError: a source that is not there or has no trained token, or a stream whose sources are not counted.
        DataError: the column of weights holds something else.
    """
    coreset: CoresetConfig = trainer.coreset
    claims = Claims(coreset.claimed)
    if claims.objective.by_source:
        claims.counts = _counts(trainer, dataset, sources, coreset)
        claims.check()
    run = trainer._run
    if run.draws is not None:
        claims.corrections = run.draws.corrections
        _check_drawn(claims, run.draws.never_drawn())
    if run.learnt is not None and run.learnt.method.unbiased:
        claims.row_corrections = run.learnt.weights
    if (online := run.online) is not None:
        assert claims.counts is not None
        online.begin(claims.counts.names, claims.counts.tokens)
        check_held_out(trainer, online)
        claims.online = online
    if coreset.weight_column is not None:
        claims.row_weights = _weights(trainer.train_dataset, coreset.weight_column)
    return claims


def _check_drawn(claims: Claims, absent: Sequence[str]) -> None:
    """Raises ConfigError for an objective in which sources count of which no row is ever drawn."""
    if not absent or claims.counts is None:
        return
    tokens = {claims.counts.names[source]: count for source, count in claims.counts.tokens.items()}
    for objective in claims.objective.parts:
        shares = objective.of_sources(tokens)
        if missing := [name for name in absent if objective.by_source and (shares is None or shares[name])]:
            raise ConfigError(
                f"coreset.objective {objective.plain()!r} has the sources {', '.join(missing)} count. Found that "
                "coreset.sampling draws no row of them: give them a share of the draws, or none in the objective."
            )


def _counts(trainer: Any, dataset: Any, sources: Sources, coreset: CoresetConfig) -> TokenCounts:
    given = coreset.source_tokens
    if not sources.counts:
        if given is None:
            raise ConfigError(
                f"coreset.objective {coreset.objective!r} needs the trained tokens of each source. Found a stream, "
                "which cannot be counted beforehand: give coreset.source_tokens {name: trained tokens} "
                "(corebatch.trainer.count_source_tokens makes a pass over it)."
            )
        return TokenCounts({name_hash(name): name for name in given}, {name_hash(name): n for name, n in given.items()})
    if given is None:
        collate = trainer._get_collator_with_removed_columns(trainer.data_collator, description="training")
        with random_states(devices=[]):
            numbers: Mapping[int, float] = _trained((dataset[i] for i in range(len(dataset))), collate)
    else:
        there = {sources.names[source]: source for source in sources.counts}
        for name in given:
            if name not in there:
                raise ConfigError(
                    f"coreset.source_tokens should name the sources of train_dataset: {', '.join(there)}. "
                    f"Found {name!r}.{hint(name, there)}"
                )
        numbers = {there[name]: count for name, count in given.items()}
    return TokenCounts(dict(sources.names), {source: numbers.get(source, 0) for source in sources.counts})


def _trained(rows: Iterable[Any], collate: Callable[[list[Any]], Any]) -> Counter[int]:
    """Trained tokens by number of source."""
    counts: Counter[int] = Counter()
    for some in _in_parts(iter(rows)):
        batch = collate(some)
        for source, tokens in zip(batch[SOURCE].tolist(), trained_tokens(batch["labels"]).tolist(), strict=True):
            counts[source] += tokens
    return counts


def _in_parts(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while part := list(islice(rows, ROWS_AT_ONCE)):
        yield part


def _weights(dataset: Any, column: str) -> Tensor:
    """float64 [examples]: the column's numbers."""
    if is_stream(dataset):
        raise ConfigError(
            f"coreset.weight_column {column!r} is looked up by an example's number. Found a stream: use data with a "
            "length."
        )
    values = _values(dataset, column)
    for row, value in enumerate(values):
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
            raise DataError(
                f"The column {column!r} (coreset.weight_column) should hold finite numbers of at least 0. Found "
                f"{value!r} in row {row}."
            )
    found = torch.tensor(values, dtype=torch.float64)
    if not float(found.sum()):
        raise DataError(f"The column {column!r} (coreset.weight_column) should weigh some example. Found zeros alone.")
    return found


def _values(dataset: Any, column: str) -> Sequence[Any]:
    if hasattr(dataset, "column_names") and not has_transform(dataset):
        present = list(dataset.column_names)
        values = dataset.with_format(None)[column] if column in present else None
    else:
        first = dataset[0]
        present = list(first) if isinstance(first, Mapping) else []
        values = [dataset[row][column] for row in range(len(dataset))] if column in present else None
    if values is None:
        raise ConfigError(
            f"coreset.weight_column names {column!r}, which train_dataset has not. Found the columns "
            f"{', '.join(sorted(present))}.{hint(column, present)}"
        )
    return [value.item() if hasattr(value, "item") else value for value in values]
