"""Specs and a tokenizer -> one tokenised data set, with a count of everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from corebatch.mixture.cache import RowCache, read_record, temporary_rows, write_record
from corebatch.mixture.digests import Memo, rows_key
from corebatch.mixture.examples import Found, batches, counted, one_answer_each, read_examples, special_texts
from corebatch.mixture.parallel import check_processes, in_order
from corebatch.mixture.spec import DatasetSpec, check_no_shares, parse_specs
from corebatch.mixture.store import RowStore, mapped_rows, tokenise_block
from corebatch.mixture.tally import SourceCounts, Tally, check_sources, table_row, warn_of_many, weighted_rows
from corebatch.mixture.tokenise import TokeniseOptions, Tokeniser

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
        special_texts: label of a spec -> how many of its conversations hold the text of a special token within a
            turn, the first such text, and where.
        places: of each row its number among all examples of all specs as they are read, from 0: Integers [N]; None
            where weights draw or repeat rows.
    """

    dataset: Any
    counts: Mapping[str, SourceCounts]
    specs: tuple[DatasetSpec, ...]
    options: TokeniseOptions
    seed: int
    unused_columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    special_texts: Mapping[str, tuple[int, str, str]] = field(default_factory=dict)
    places: Any = None

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
    weight_column: str | None = None,
    apply_chat_template: bool = False,
    chat_template: str | None = None,
    separator: str = "\n",
    train_turns: str = "all",
    seed: int = 0,
    dataset_num_proc: int | None = None,
    cache: bool | str | Path | None = None,
    work_dir: str | Path | None = None,
) -> Mixture:
    """Reads and tokenises all data sets, one after another: a union without replacement, not shuffled.

    Rows without a trained token are dropped and counted. A spec's weight acts on what is left of its rows;
    the rows drawn depend on `seed` and the spec's position alone. Two specs may share a source.

    Args:
        specs: at least one DatasetSpec, mapping of its fields, or path.
        tokenizer: a Hugging Face tokenizer. Fast ones may tokenise on all cores by themselves.
        max_length: tokens; longer rows keep their beginning and are counted.
        source_column: the rows' own column with the name of their source.
        weight_column: the rows' own column with how much each counts, which the data set has too; None: none.
        apply_chat_template: as in TokeniseOptions, like the three that follow it.
        seed: of the draws made for weights.
        dataset_num_proc: processes that tokenise; the rows and their order are those of one.
        cache: whether tokenised rows are kept for the next start and other processes, or the folder that they are
            kept in (True: see RowCache). None: yes, unless `work_dir` is given.
        work_dir: where rows that are not kept are until the process ends; None: the system's temporary folder.

    Raises:
        ConfigError: a bad setting, an unknown key, or conversations without a chat template.
        DataError: a file, line or row that cannot be used, or a source that has no rows left.
    """
    parsed = parse_specs(specs)
    check_no_shares(parsed)
    options = TokeniseOptions(
        max_length=max_length, apply_chat_template=apply_chat_template, chat_template=chat_template,
        separator=separator, train_turns=train_turns,
    )  # fmt: skip
    plan = _LoadPlan(tuple(parsed), source_column, options, tokenizer, check_processes(dataset_num_proc), weight_column)
    folder = _folder(plan, cache, work_dir)
    record = read_record(folder)
    tally = Tally.load(folder, record["tally"])
    warn_of_many(tally.names, sum(tally.read), source_column)
    dataset, chosen = mapped_rows(folder), _chosen(parsed, tally, seed)
    return Mixture(
        dataset=dataset if chosen is None else dataset.select(chosen),
        counts=tally.counts(max_length, chosen),
        specs=tuple(parsed),
        options=options,
        seed=seed,
        unused_columns={label: tuple(names) for label, names in record["unused"].items()},
        special_texts={label: tuple(found) for label, found in record["special"].items()},
        places=tally.rows[3] if chosen is None else None,
    )


@dataclass(frozen=True, slots=True)
class _LoadPlan:
    """All that the rows before weights depend on, and in how many processes they are made."""

    specs: tuple[DatasetSpec, ...]
    source_column: str
    options: TokeniseOptions
    tokenizer: Any
    processes: int
    weight_column: str | None = None


def _folder(plan: _LoadPlan, cache: bool | str | Path | None, work_dir: str | Path | None) -> Path:
    """The folder with the plan's rows, kept or made."""
    if cache is False or (cache is None and work_dir is not None):
        return temporary_rows(lambda folder: _write_rows(plan, folder, None), work_dir)
    kept = RowCache(cache if isinstance(cache, str | Path) else None)
    memo = Memo(kept.folder / "digests")
    key = rows_key(plan.specs, plan.source_column, plan.options, plan.tokenizer, memo, plan.weight_column)
    if key is None:
        return temporary_rows(lambda folder: _write_rows(plan, folder, None))
    return kept.folder_for(key, lambda folder: _write_rows(plan, folder, memo))


def _write_rows(plan: _LoadPlan, folder: Path, memo: Memo | None) -> bool:
    """Tokenises everything into a folder; whether it may be kept: not if a file changed meanwhile."""
    tokeniser = Tokeniser(plan.tokenizer, plan.options)
    tally, unused, special = Tally(), dict[str, tuple[str, ...]](), Found()
    pattern = special_texts(plan.tokenizer)
    with RowStore(folder, plan.weight_column) as store:
        for spec in plan.specs:
            read = read_examples(spec, plan.source_column, unused, plan.weight_column)
            read = counted(read, spec.label, pattern, plan.options.apply_chat_template, special)
            examples = one_answer_each(read, tokeniser.each)
            work = batches(examples, ROWS_AT_ONCE)
            for block in in_order(partial(tokenise_block, tokeniser, plan.weight_column), work, plan.processes):
                tally.add(block)
                store.append(block.batch)
            tally.end_spec()
    check_sources(tally.names, sum(tally.read), plan.source_column)
    tally.check(plan.options.max_length)
    told = {"unused": unused, "special": special}
    write_record(folder, {"specs": [spec.label for spec in plan.specs], "tally": tally.save(folder), **told})
    return memo is not None and memo.unchanged()


def _chosen(specs: Sequence[DatasetSpec], tally: Tally, seed: int) -> list[int] | None:
    """The rows that weights leave, repeat and draw; None if these are all rows, once each."""
    if all(spec.times == 1 for spec in specs):
        return None
    chosen: list[int] = []
    starts = [0, *tally.ends]
    for position, (spec, start, end) in enumerate(zip(specs, starts, tally.ends, strict=False)):
        sources = tally.rows[0, start:end].tolist()
        chosen.extend(start + row for row in weighted_rows(sources, spec.times, seed, position))
    return chosen
