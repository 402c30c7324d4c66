"""Specs and a tokenizer -> one tokenised data set, with a count of everything."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from corebatch.errors import DataError
from corebatch.mixture.counts import SourceCounts, length_quantiles, table_row
from corebatch.mixture.examples import batches, one_answer_each, read_examples
from corebatch.mixture.many_sources import check_sources
from corebatch.mixture.spec import DatasetSpec, parse_specs
from corebatch.mixture.store import RowStore
from corebatch.mixture.tokenise import TokeniseOptions, Tokeniser, TokenRow
from corebatch.mixture.weights import weighted_rows

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A mixture ready for a trainer.

    Attributes:
        dataset: `datasets.Dataset` with the columns input_ids [T], labels [T] (-100: not trained), source
            (its name) and length (T); rows in the order of the specs. The collator makes the attention mask.
        counts: source -> what was read and kept, in order of first appearance.
        specs: what was asked for.
        options: how rows were tokenised.
        seed: of the draws that weights below or between whole numbers make.
        unused_columns: label of a spec (its path) -> its columns, and keys of turns as "messages.NAME", to
            which nothing here gives a meaning.
    """

    dataset: Any
    counts: Mapping[str, SourceCounts]
    specs: tuple[DatasetSpec, ...]
    options: TokeniseOptions
    seed: int
    unused_columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def summary(self) -> list[dict[str, Any]]:
        """One flat dictionary for each source, for a table; `share` is of the rows."""
        total = len(self.dataset)
        return [table_row(source, counts, share=counts.rows / total) for source, counts in self.counts.items()]

    def text(self, index: int, tokenizer: Any) -> str:
        """The text of one row, special tokens included, decoded from its ids."""
        return str(tokenizer.decode(self.dataset[index]["input_ids"]))


def load_mixture(
    specs: Sequence[DatasetSpec | Mapping[str, Any] | str],
    tokenizer: Any,
    *,
    max_length: int = 1024,
    source_column: str = "source",
    apply_chat_template: bool = False,
    chat_template: str | None = None,
    separator: str = "\n",
    train_turns: str = "all",
    seed: int = 0,
    work_dir: str | Path | None = None,
) -> Mixture:
    """Reads and tokenises all data sets, one after another: a union without replacement, not shuffled.

    Rows without a trained token are dropped and counted. A spec's weight acts on what is left of its rows;
    the rows drawn depend on `seed` and the spec's position alone. Two specs may share a source.

    Args:
        specs: at least one DatasetSpec, mapping of its fields, or path.
        tokenizer: a Hugging Face tokenizer. Fast ones tokenise on all cores by themselves.
        max_length: tokens; longer rows keep their beginning and are counted.
        source_column: the rows' own column with the name of their source.
        apply_chat_template, chat_template, separator, train_turns: see TokeniseOptions.
        seed: of the draws made for weights.
        work_dir: where the tokenised rows are kept until the process ends; None: the system's temporary
            folder.

    Raises:
        ConfigError: a bad setting, an unknown key, or conversations without a chat template.
        DataError: a file, line or row that cannot be used, or a source that has no rows left.
    """
    parsed = parse_specs(specs)
    options = TokeniseOptions(
        max_length=max_length,
        apply_chat_template=apply_chat_template,
        chat_template=chat_template,
        separator=separator,
        train_turns=train_turns,
    )
    tokeniser = Tokeniser(tokenizer, options)
    tally = _Tally()
    unused: dict[str, tuple[str, ...]] = {}
    with RowStore(work_dir) as store:
        for position, spec in enumerate(parsed):
            first = len(tally.source)
            for source, row in _token_rows(spec, source_column, tokeniser, unused):
                if tally.add(source, row):
                    store.append(row, source)
            chosen = weighted_rows(tally.source[first:], spec.weight, seed, position)
            tally.chosen.extend(first + i for i in chosen)
        check_sources(tally.names, sum(tally.read), source_column)
        counts = tally.counts(max_length)
        dataset = store.dataset()
    if tally.weighted:
        dataset = dataset.select(tally.chosen)
    return Mixture(
        dataset=dataset, counts=counts, specs=tuple(parsed), options=options, seed=seed, unused_columns=unused
    )


def _token_rows(
    spec: DatasetSpec, source_column: str, tokeniser: Tokeniser, unused: dict[str, tuple[str, ...]]
) -> Iterator[tuple[str, TokenRow]]:
    examples = one_answer_each(read_examples(spec, source_column, unused), tokeniser.each)
    for batch in batches(examples, ROWS_AT_ONCE):
        rows = tokeniser([example.row for example in batch], [example.where for example in batch])
        yield from zip((example.source for example in batch), rows, strict=True)


@dataclass(slots=True)
class _Tally:
    """Per source what was read, dropped and cut; per kept row its source, length and trained tokens."""

    names: dict[str, int] = field(default_factory=dict)
    read: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    source: array[int] = field(default_factory=lambda: array("i"))
    length: array[int] = field(default_factory=lambda: array("i"))
    trained: array[int] = field(default_factory=lambda: array("i"))
    chosen: array[int] = field(default_factory=lambda: array("q"))

    def add(self, source: str, row: TokenRow) -> bool:
        """Counts one row; whether it is kept."""
        number = self.names.setdefault(source, len(self.names))
        if number == len(self.read):
            for column in (self.read, self.dropped, self.truncated):
                column.append(0)
        self.read[number] += 1
        self.truncated[number] += row.truncated
        trained = row.trained
        if not trained:
            self.dropped[number] += 1
            return False
        self.source.append(number)
        self.length.append(len(row.input_ids))
        self.trained.append(trained)
        return True

    @property
    def weighted(self) -> bool:
        """Whether weights changed anything."""
        return len(self.chosen) != len(self.source) or any(i != row for i, row in enumerate(self.chosen))

    def counts(self, max_length: int) -> dict[str, SourceCounts]:
        chosen = np.asarray(self.chosen, dtype=np.int64)
        source, length, trained = (
            np.asarray(column, dtype=np.int64)[chosen] for column in (self.source, self.length, self.trained)
        )
        order = np.argsort(source, kind="stable")
        ends = np.cumsum(np.bincount(source, minlength=len(self.names)))
        counts = {}
        for name, number in self.names.items():
            own = order[ends[number - 1] if number else 0 : ends[number]]
            if not len(own):
                raise DataError(
                    f"The source {name!r} has no rows left: of {self.read[number]} read, "
                    f"{self.dropped[number]} have "
                    f"no trained token within max_length = {max_length}. Raise max_length, or look whether answers "
                    "are blank."
                )
            counts[name] = SourceCounts(
                rows_read=self.read[number],
                rows_dropped=self.dropped[number],
                rows_truncated=self.truncated[number],
                rows=len(own),
                tokens=int(length[own].sum()),
                trained_tokens=int(trained[own].sum()),
                lengths=length_quantiles(length[own].tolist()),
            )
        dropped, cut = sum(self.dropped), sum(self.truncated)
        if dropped or cut:
            logger.info("of %d rows, %d cut at %d tokens, %d dropped", sum(self.read), cut, max_length, dropped)
        return counts
