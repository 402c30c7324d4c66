"""A look at a mixture without tokenising all of it: every row is read and checked, a sample is tokenised."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets

from corebatch.errors import DataError
from corebatch.mixture.examples import Example, Found, counted, one_answer_each, read_examples, special_texts
from corebatch.mixture.spec import DatasetSpec, check_no_shares, parse_specs
from corebatch.mixture.store import schema
from corebatch.mixture.tally import check_sources, length_quantiles, table_row, warn_of_many
from corebatch.mixture.tokenise import TokeniseOptions, Tokeniser, TokenRow
from corebatch.options import check_count


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePreview:
    """One source, as far as a sample tells.

    Attributes:
        rows_read: rows in the files, all of them read and checked.
        rows: predicted rows of the data set: weights applied, the sample's dropped share taken off.
        sampled: rows tokenised.
        sampled_dropped: of these, without a trained token.
        sampled_blank: of the dropped ones, those that were not cut: nothing in them is to be trained.
        sampled_truncated: of the sampled rows, longer than `max_length`.
        tokens: predicted tokens in `rows`.
        trained_tokens: predicted tokens with a loss.
        lengths: tokens a row of the sampled rows that are kept: "min", "median", "p90", "p99", "max".
    """

    rows_read: int
    rows: int
    sampled: int
    sampled_dropped: int
    sampled_blank: int
    sampled_truncated: int
    tokens: int
    trained_tokens: int
    lengths: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixturePreview:
    """What `load_mixture` would give.

    Attributes:
        sources: source -> prediction, in order of first appearance.
        sample: `datasets.Dataset` in memory with the tokenised sample, columns as a Mixture's.
        rows: predicted rows of all sources.
        seed: of the sample.
        options: how rows were tokenised.
        unused_columns, special_texts: as of a Mixture.
    """

    sources: Mapping[str, SourcePreview]
    sample: Any
    rows: int
    seed: int
    options: TokeniseOptions
    unused_columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    special_texts: Mapping[str, tuple[int, str, str]] = field(default_factory=dict)

    def summary(self) -> list[dict[str, Any]]:
        """One flat dictionary for each source, for a table; `share` is of the predicted rows."""
        total = max(self.rows, 1)
        return [table_row(source, seen, share=seen.rows / total) for source, seen in self.sources.items()]


def preview_mixture(
    specs: Sequence[DatasetSpec | Mapping[str, Any] | str],
    tokenizer: Any,
    *,
    rows_per_source: int = 64,
    source_column: str = "source",
    weight_column: str | None = None,
    seed: int = 0,
    **options: Any,
) -> MixturePreview:
    """Reads and checks every row, tokenises at most `rows_per_source` of each source, drawn evenly.

    Args:
        specs, tokenizer, source_column, weight_column: as `load_mixture`.
        rows_per_source: at least 1.
        seed: of the sample.
        options: the fields of TokeniseOptions.

    Raises:
        ConfigError, DataError: as `load_mixture`. A source whose sample is dropped as a whole is
            an error only if the sample is all of it.
    """
    check_count("`rows_per_source`", rows_per_source)
    parsed = parse_specs(specs)
    check_no_shares(parsed)
    made = TokeniseOptions(**options)
    tokeniser = Tokeniser(tokenizer, made)
    samples: dict[str, _Sample] = {}
    unused: dict[str, tuple[str, ...]] = {}
    special, pattern = Found(), special_texts(tokenizer)
    for spec in parsed:
        read = read_examples(spec, source_column, unused, weight_column)
        read = counted(read, spec.label, pattern, made.apply_chat_template, special)
        for example in one_answer_each(read, tokeniser.each):
            if example.source not in samples:
                samples[example.source] = _Sample(rows_per_source, f"mixture preview {seed} {example.source}")
            samples[example.source].add(example, spec.times)
    rows_read = sum(sample.read for sample in samples.values())
    check_sources(samples, rows_read, source_column)
    warn_of_many(samples, rows_read, source_column)
    sources: dict[str, SourcePreview] = {}
    columns: dict[str, list[Any]] = {name: [] for name in schema(weight_column).names}
    for name, sample in samples.items():
        rows = tokeniser([example.row for example in sample.kept], [example.where for example in sample.kept])
        usable = [row for row in rows if row.trained]
        weights = [example.weight for row, example in zip(rows, sample.kept, strict=True) if row.trained]
        sources[name] = _predict(name, sample, rows, usable)
        for row, weight in zip(usable, weights, strict=True):
            cells = (row.input_ids, row.labels, name, len(row.input_ids), weight)
            for column, cell in zip(columns.values(), cells, strict=False):
                column.append(cell)
    return MixturePreview(
        sources=sources,
        sample=datasets.Dataset.from_dict(columns),
        rows=sum(seen.rows for seen in sources.values()),
        seed=seed,
        options=made,
        unused_columns=unused,
        special_texts=special,
    )


class _Sample:
    """At most `size` examples of a stream, each with the same chance (Vitter 1985, algorithm R)."""

    def __init__(self, size: int, seed: str) -> None:
        self.kept: list[Example] = []
        self.read = 0
        self.weight = 0.0
        self._size = size
        self._generator = random.Random(seed)

    def add(self, example: Example, weight: float) -> None:
        self.read += 1
        self.weight += weight
        if len(self.kept) < self._size:
            self.kept.append(example)
        elif (place := self._generator.randrange(self.read)) < self._size:
            self.kept[place] = example


def _predict(name: str, sample: _Sample, rows: list[TokenRow], usable: list[TokenRow]) -> SourcePreview:
    if not usable and len(rows) == sample.read:
        raise DataError(
            f"The source {name!r} has no rows left: none of {sample.read} read has a trained token within "
            "max_length. Raise max_length, or look whether answers are blank."
        )
    lengths = [len(row.input_ids) for row in usable]
    kept_rows = sample.weight * len(usable) / len(rows)
    each = kept_rows / max(len(usable), 1)
    return SourcePreview(
        rows_read=sample.read,
        rows=round(kept_rows),
        sampled=len(rows),
        sampled_dropped=len(rows) - len(usable),
        sampled_blank=sum(not row.trained and not row.truncated for row in rows),
        sampled_truncated=sum(row.truncated for row in rows),
        tokens=round(each * sum(lengths)),
        trained_tokens=round(each * sum(row.trained for row in usable)),
        lengths=length_quantiles(lengths),
    )
