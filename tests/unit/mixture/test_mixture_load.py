from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from mixture_rows import WriteLines, qa
from transformers import PreTrainedTokenizerFast

from corebatch.errors import ConfigError, DataError
from corebatch.mixture import load_mixture, preview_mixture
from corebatch.mixture.store import RowStore, arrow_batch, mapped_rows
from corebatch.mixture.tally import weighted_rows
from corebatch.mixture.tokenise import TokenRow


def completions(mixture: Any, tokenizer: Any) -> list[str]:
    return [
        tokenizer.decode([label for label in labels if label != -100], skip_special_tokens=True)
        for labels in mixture.dataset["labels"]
    ]


def test_a_union_in_order(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    paths = [write_jsonl("algebra.jsonl", qa(3)), write_jsonl("logic.jsonl", [{"text": "abc"}])]
    mixture = load_mixture([str(path) for path in paths], tokenizer)
    assert mixture.dataset.column_names == ["input_ids", "labels", "source", "length"]
    assert list(mixture.dataset["source"]) == ["algebra"] * 3 + ["logic"]
    assert completions(mixture, tokenizer) == ["the answer 0", "the answer 1", "the answer 2", "abc"]
    assert list(mixture.dataset["length"]) == [len(ids) for ids in mixture.dataset["input_ids"]]
    assert mixture.text(0, tokenizer) == "what is 0?\nthe answer 0</s>"
    assert list(mixture.counts) == ["algebra", "logic"]
    algebra = mixture.counts["algebra"]
    assert (algebra.rows_read, algebra.rows, algebra.rows_dropped, algebra.rows_truncated) == (3, 3, 0, 0)
    lengths = mixture.dataset["length"][:3]
    assert algebra.tokens == sum(lengths)
    assert algebra.lengths["max"] == max(lengths)
    assert algebra.trained_tokens == sum(sum(x != -100 for x in row) for row in mixture.dataset["labels"][:3])
    row = mixture.summary()[0]
    assert (row["source"], row["share"], row["length_max"]) == ("algebra", 0.75, max(lengths))


def test_several_batches_give_what_single_rows_give(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines
) -> None:
    """More rows than are tokenised, and written, at once."""
    path = write_jsonl("a.jsonl", qa(1203))
    mixture = load_mixture([str(path)], tokenizer)
    assert completions(mixture, tokenizer) == [row["completion"] for row in qa(1203)]


def test_every_kind_of_file_gives_the_same(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines
) -> None:
    rows = qa(5, source="s")
    table = datasets.Dataset.from_list(rows)
    paths = [
        write_jsonl("a.jsonl", rows),
        *(tmp_path / f"a.{kind}" for kind in ("json", "parquet", "csv")),
        tmp_path / "saved",
    ]
    table.to_json(paths[1], lines=False)
    table.to_parquet(paths[2])
    table.to_csv(paths[3])
    table.save_to_disk(paths[4])
    tables = [load_mixture([str(path)], tokenizer).dataset.to_list() for path in paths]
    assert all(found == tables[0] for found in tables)


def test_nothing_is_written_beside_the_data(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines
) -> None:
    path = write_jsonl("data/a.jsonl", qa(3))
    mixture = load_mixture([str(path)], tokenizer, work_dir=tmp_path / "work")
    assert os.listdir(path.parent) == ["a.jsonl"]
    assert len(list((tmp_path / "work").rglob("rows.arrow"))) == 1
    assert len(mixture.dataset.map(lambda row: {"double": 2 * row["length"]})) == 3
    assert os.listdir(path.parent) == ["a.jsonl"]
    path.write_text("broken")
    with pytest.raises(DataError):
        load_mixture([str(path)], tokenizer, work_dir=tmp_path / "failed")
    assert os.listdir(tmp_path / "failed") == []


def test_a_changed_file_is_read_anew(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    for count in (2, 3):
        assert len(load_mixture([str(write_jsonl("a.jsonl", qa(count)))], tokenizer).dataset) == count


def test_sources_spec_then_column_then_name(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    own = write_jsonl("own.jsonl", [*qa(2, source="theirs"), *qa(1, source=None), *qa(1), *qa(1, source=7)])
    named = write_jsonl("deep/train.jsonl", qa(1, kind="mine"))
    specs = [{"path": str(own)}, {"path": str(own), "source": "ours"}, {"path": str(named)}]
    mixture = load_mixture(specs, tokenizer)
    assert Counter(mixture.dataset["source"]) == {"theirs": 2, "own": 2, "7": 1, "ours": 5, "deep": 1}
    other = load_mixture([str(named)], tokenizer, source_column="kind")
    assert list(other.dataset["source"]) == ["mine"]
    with pytest.raises(DataError, match=r"bad\.jsonl, line 1: the source in column 'source'.*Found \['a'\]"):
        load_mixture([str(write_jsonl("bad.jsonl", qa(1, source=["a"])))], tokenizer)


def test_two_specs_of_one_source_merge(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    specs = [
        {"path": str(write_jsonl("a.jsonl", qa(2))), "source": "both"},
        {"path": str(write_jsonl("b.jsonl", qa(4))), "source": "both", "weight": 0.5},
    ]
    mixture = load_mixture(specs, tokenizer)
    assert (mixture.counts["both"].rows_read, mixture.counts["both"].rows) == (6, 4)


@pytest.mark.parametrize("weight, copies, drawn", [(1, 1, 0), (2, 2, 0), (0.5, 0, 5), (1.5, 1, 5), (0.33, 0, 3)])
def test_weights_by_exact_counts(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines, weight: float, copies: int, drawn: int
) -> None:
    spec = {"path": str(write_jsonl("a.jsonl", qa(10))), "weight": weight}
    found = completions(load_mixture([spec], tokenizer, seed=1), tokenizer)
    times = Counter(Counter(found).values())
    assert times == Counter({copies: 10 - drawn, copies + 1: drawn}) - Counter({0: 10})
    assert found == completions(load_mixture([spec], tokenizer, seed=1), tokenizer)
    if drawn:
        others = [completions(load_mixture([spec], tokenizer, seed=s), tokenizer) for s in range(4)]
        assert any(other != found for other in others)


@settings(max_examples=60, deadline=None)
@given(
    sources=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    weight=st.floats(0.01, 4.0),
    seed=st.integers(0, 3),
)
def test_weighted_rows(sources: list[int], weight: float, seed: int) -> None:
    rows = weighted_rows(sources, weight, seed, 0)
    times = Counter(rows)
    assert all(math.floor(weight) <= times[row] <= math.ceil(weight) for row in range(len(sources)))
    for source, count in Counter(sources).items():
        found = sum(sources[row] == source for row in rows)
        assert abs(found - weight * count) <= 0.5 + 1e-6 or (weight < 1 and found == 1)
    copies = math.floor(weight) * len(sources)
    assert rows[copies:] == sorted(set(rows[copies:]))
    assert rows == weighted_rows(sources, weight, seed, 0)


def test_two_halves_of_one_file_are_drawn_apart() -> None:
    assert weighted_rows([0] * 50, 0.5, 0, 0) != weighted_rows([0] * 50, 0.5, 0, 1)


def test_dropped_and_truncated_rows_are_counted(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    rows = [
        *qa(2),
        {"prompt": "x" * 60, "completion": "cut away"},
        {"prompt": "q", "completion": " "},
        {"prompt": "q", "completion": "y" * 60},
    ]
    mixture = load_mixture([str(write_jsonl("a.jsonl", rows))], tokenizer, max_length=30)
    counts = mixture.counts["a"]
    assert (counts.rows_read, counts.rows, counts.rows_dropped, counts.rows_truncated) == (5, 3, 2, 2)
    assert max(mixture.dataset["length"]) == 30


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_an_empty_shard_among_others_is_told(tokenizer, tmp_path, caplog, kind) -> None:
    rows = Dataset.from_list([{"prompt": f"q {i}", "completion": f"a {i}"} for i in range(6)])
    for number, some in enumerate((rows.select(range(3)), rows.select([]), rows.select(range(3, 6)))):
        path = tmp_path / f"part-{number}.{kind}"
        write = {"jsonl": some.to_json, "csv": some.to_csv, "parquet": some.to_parquet}[kind]
        write(path) if len(some) or kind == "parquet" else path.write_text("")
    mixture = load_mixture([str(tmp_path)], tokenizer)
    assert len(mixture.dataset) == 6
    assert f"1 of 3 files have no rows: {tmp_path / 'part-1'}.{kind}." in caplog.text


def test_empty_files_and_sources(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    empty = write_jsonl("empty.jsonl", [])
    with pytest.raises(DataError, match=r"empty\.jsonl: should have at least one row"):
        load_mixture([str(empty)], tokenizer)
    empty.write_bytes(b"\xef\xbb\xbf\r\n \r\n")
    with pytest.raises(DataError, match=r"empty\.jsonl: should have at least one row"):
        load_mixture([str(empty)], tokenizer)
    header = empty.with_name("header.csv")
    header.write_text("text\n")
    with pytest.raises(DataError, match=r"header\.csv: should have at least one row"):
        load_mixture([str(header)], tokenizer)
    with pytest.raises(DataError, match=r"header\.csv.*should have at least one row"):
        load_mixture([{"path": [str(header), str(empty)]}], tokenizer)
    some = write_jsonl("some.jsonl", qa(3))
    with pytest.raises(DataError, match=r"some\.jsonl \(split 'train\[:0\]'\): should have at least one row"):
        load_mixture([{"path": str(some), "split": "train[:0]"}], tokenizer)
    blank = write_jsonl("blank.jsonl", [*qa(1), {"prompt": "q", "completion": "", "source": "hollow"}])
    for load in (load_mixture, preview_mixture):
        with pytest.raises(DataError, match="source 'hollow' has no rows left"):
            load([str(some), str(blank)], tokenizer)


def test_columns_may_differ_where_they_are_not_used(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines
) -> None:
    rows = [qa(1, extra=1)[0], qa(2, extra="one")[1], {"more": [], **qa(1)[0]}]
    assert len(load_mixture([str(write_jsonl("a.jsonl", rows))], tokenizer).dataset) == 3
    rows.append({"prompt": "q", "text": "t"})
    with pytest.raises(DataError, match=r"b\.jsonl, line 4: the column 'completion'"):
        load_mixture([str(write_jsonl("b.jsonl", rows))], tokenizer)


@pytest.mark.parametrize("cell, found", [(None, "null"), (3, r"3 \(int\)")])
def test_a_bad_cell_names_file_and_line(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines, cell: Any, found: str
) -> None:
    rows = [*qa(2), {"prompt": "q", "completion": cell}]
    for load in (load_mixture, preview_mixture):
        with pytest.raises(DataError, match=rf"a\.jsonl, line 3: 'completion' should be a string. Found {found}"):
            load([str(write_jsonl("a.jsonl", rows))], tokenizer)
    if cell is None:
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"a\.parquet, row 3: 'completion'"):
            load_mixture([str(tmp_path / "a.parquet")], tokenizer)


def test_conversations_from_parquet(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list([{"messages": messages}, {"messages": messages * 2}]).to_parquet(path)
    assert completions(load_mixture([str(path)], tokenizer), tokenizer) == ["a\n", "a\na\n"]


def test_unknown_keys_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="unknown key 'wieght'"):
        load_mixture([{"path": "a.jsonl", "wieght": 1}], tokenizer)


def test_the_store_is_removed_with_its_process(tmp_path: Path) -> None:
    from corebatch.scratch import _remove, scratch_folder

    folder = scratch_folder(tmp_path, "rows-")
    with RowStore(folder) as store:
        store.append(arrow_batch([TokenRow([1, 2], [-100, 2])], ["s"]))
    rows = mapped_rows(folder)
    _remove(str(folder), os.getpid() + 1)
    assert folder.exists()
    _remove(str(folder), os.getpid())
    assert not folder.exists()
    assert rows[0]["input_ids"] == [1, 2]  # still mapped


def test_preview_agrees_with_loading_when_it_samples_everything(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines
) -> None:
    rows = [*qa(8, source="a"), *qa(4, source="b"), {"prompt": "q", "completion": " ", "source": "b"}]
    specs = [{"path": str(write_jsonl("x.jsonl", rows)), "weight": 2}]
    preview = preview_mixture(specs, tokenizer, rows_per_source=50, max_length=20)
    mixture = load_mixture(specs, tokenizer, max_length=20)
    assert preview.rows == len(mixture.dataset)
    for name, counts in mixture.counts.items():
        seen = preview.sources[name]
        assert (seen.rows_read, seen.rows, seen.tokens, seen.trained_tokens, seen.lengths) == (
            counts.rows_read,
            counts.rows,
            counts.tokens,
            counts.trained_tokens,
            counts.lengths,
        )
    assert preview.sample.column_names == mixture.dataset.column_names
    assert {row["source"] for row in preview.summary()} == {"a", "b"}


def test_preview_samples_evenly_and_checks_every_row(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines
) -> None:
    path = str(write_jsonl("x.jsonl", qa(400)))
    preview = preview_mixture([path], tokenizer, rows_per_source=20, seed=3)
    seen = preview.sources["x"]
    assert (seen.sampled, seen.rows_read, seen.rows, len(preview.sample)) == (20, 400, 400, 20)
    exact = load_mixture([path], tokenizer).counts["x"]
    assert seen.tokens == pytest.approx(exact.tokens, rel=0.1)
    again = preview_mixture([path], tokenizer, rows_per_source=20, seed=3)
    assert again.sample.to_list() == preview.sample.to_list()
    broken = str(write_jsonl("y.jsonl", [*qa(400), {"prompt": "q", "completion": None}]))
    with pytest.raises(DataError, match="line 401"):
        preview_mixture([broken], tokenizer, rows_per_source=1)
    with pytest.raises(ConfigError, match="rows_per_source"):
        preview_mixture([path], tokenizer, rows_per_source=0)
