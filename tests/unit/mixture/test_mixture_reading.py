from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from mixture_rows import WriteLines, qa

from corebatch.errors import DataError
from corebatch.mixture import DatasetSpec
from corebatch.mixture.reading import read_parts

COLUMNS = frozenset({"prompt", "completion"})


def read(path: Path | str, keep: frozenset[str] | None = None, **fields: Any) -> list[dict[str, Any]]:
    parts = read_parts(DatasetSpec(str(path), **fields))
    return [dict(raw.values) for part in parts for raw in part.rows(keep)]


def test_jsonl_with_byte_order_mark_crlf_blank_lines_and_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": "einsäø\u2028zwei"}, {"text": "drei", "more": 1}]
    path.write_bytes(
        b"\xef\xbb\xbf" + b"\r\n\r\n".join(json.dumps(row, ensure_ascii=False).encode() for row in rows) + b"\r\n"
    )
    assert read(path) == rows
    parts = read_parts(DatasetSpec(str(path)))
    assert [raw.where for raw in parts[0].rows()] == [f"{path}, line 1", f"{path}, line 3"]


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"text": "x"', "is not valid JSON"),
        (b"[1, 2]", "should be a JSON object"),
        (b'{"text": "\xff"}', "is not UTF-8"),
        (b"[" * 100_000, "is not valid JSON: nested too deeply"),
    ],
)
def test_a_broken_line_is_named_by_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' * 16 + line + b'\n{"text": "fine"}\n')
    with pytest.raises(DataError, match=rf"file\.jsonl, line 17: {message}"):
        read(path)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".json.gz", ".csv.gz"])
def test_gzip(tmp_path: Path, suffix: str) -> None:
    rows = qa(3)
    text = {
        ".jsonl.gz": "\n".join(map(json.dumps, rows)),
        ".json.gz": json.dumps(rows),
        ".csv.gz": "prompt,completion\n" + "\n".join(",".join(row.values()) for row in rows),
    }[suffix]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(text.encode()))
    assert read(path) == rows
    path.write_bytes(gzip.compress(text.encode())[:-12])
    with pytest.raises(DataError, match="cannot be read"):
        read(path)


@pytest.mark.parametrize("shape", ["list", "object with a list", "lines", "one object"])
def test_json_documents(tmp_path: Path, shape: str) -> None:
    rows = qa(1 if shape == "one object" else 4)
    content = {
        "list": json.dumps(rows, indent=1),
        "object with a list": json.dumps({"version": 1, "data": rows}),
        "lines": "\n".join(map(json.dumps, rows)),
        "one object": json.dumps(rows[0], indent=1),
    }[shape]
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + content, encoding="utf-8")
    assert read(path) == rows


@pytest.mark.parametrize(
    "content, message",
    [
        ('[{"a": 1}, {"a"]', "not valid JSON"),
        ('{"a": [1], "b": [2]}', "object with one list. Found the lists 'a', 'b'"),
        ("3", "Found int"),
        ('[{"a": 1}, 3]', "row 2: should be a JSON object. Found int"),
        ('{"a": 1}\n{"a"', "line 2: is not valid JSON"),
    ],
)
def test_bad_json_documents(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read(path)


def test_csv_with_quotes_newlines_and_long_cells(tmp_path: Path) -> None:
    rows = [{"prompt": 'a "b", c\nd', "completion": "x" * 200_000}, {"prompt": "", "completion": "3"}]
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(rows)
    limit = csv.field_size_limit()
    assert read(path) == rows
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    "content, message",
    [
        (b"prompt,completion\na,b\nc\n", "line 3: should have 2 cells.*Found 1"),
        (b"text,text\na,b\n", "line 1: column names should differ"),
        (b'text\n"a\n', "cannot be read"),
        (b"text\n\xff\n", "not UTF-8"),
    ],
)
def test_bad_csv(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(path)


def test_parquet_reads_the_columns_asked_for(tmp_path: Path) -> None:
    rows = qa(2500, extra=1)
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list(rows).to_parquet(path)
    assert read(path) == rows
    assert read(path, COLUMNS) == qa(2500)
    assert read(path, frozenset(), split="train[2400:]") == rows[2400:]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet"]
    path.write_bytes(b"PAR1 this is not Parquet")
    with pytest.raises(DataError, match=r"a\.parquet: is not a readable Parquet file"):
        read(path)


def test_saved_folders(tmp_path: Path) -> None:
    train, test = datasets.Dataset.from_list(qa(3)), datasets.Dataset.from_list(qa(1))
    train.save_to_disk(tmp_path / "single")
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "both")
    assert read(tmp_path / "single") == read(tmp_path / "both") == qa(3)
    assert read(tmp_path / "both", split="test") == qa(1)
    assert read(tmp_path / "both", split="train[1:]+test") == qa(3)[1:] + qa(1)
    with pytest.raises(DataError, match=r"no split 'validation'. Found 'test', 'train'"):
        read(tmp_path / "both", split="validation")
    (tmp_path / "both" / "train" / "dataset_info.json").unlink()
    with pytest.raises(DataError, match="not a readable folder of save_to_disk"):
        read(tmp_path / "both")


def test_a_folder_of_files_by_split(tmp_path: Path, write_jsonl: WriteLines) -> None:
    write_jsonl("set/algebra.jsonl", qa(2))
    write_jsonl("set/geometry.json", qa(3))
    write_jsonl("set/test/logic.jsonl", qa(1))
    write_jsonl("set/.cache/hidden.jsonl", qa(7))
    (tmp_path / "set" / "README.md").write_text("# nothing")
    assert len(read(tmp_path / "set")) == 5
    assert len(read(tmp_path / "set", split="test")) == 1
    assert len(read(tmp_path / "set", split="train[1:4]+test")) == 4
    sources = [part.default_source for part in read_parts(DatasetSpec(str(tmp_path / "set")))]
    assert sources == ["algebra", "geometry"]


def test_the_layout_of_the_hub(tmp_path: Path) -> None:
    """The same folder read by us and by `datasets` gives the same rows."""
    folder = tmp_path / "mathset"
    for shard in range(2):
        path = folder / "data" / f"train-{shard:05d}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(qa(3, shard=shard)).to_parquet(path)
    datasets.Dataset.from_list(qa(1)).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    theirs = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert read(folder) == theirs.to_list()
    assert len(read(folder, split="test")) == 1
    assert {part.default_source for part in read_parts(DatasetSpec(str(folder)))} == {"mathset"}


def test_configurations_of_a_local_folder_go_through_datasets(
    tmp_path: Path, write_jsonl: WriteLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, count in (("easy", 2), ("hard", 3)):
        write_jsonl(f"set/{name}/train.jsonl", qa(count))
    (tmp_path / "set" / "README.md").write_text(
        "---\nconfigs:\n- config_name: easy\n  data_files: easy/*.jsonl\n"
        "- config_name: hard\n  data_files: hard/*.jsonl\n---\n# set\n"
    )
    assert read(tmp_path / "set", name="hard") == qa(3)
    assert read(tmp_path / "set", name="easy", split="train[:1]") == qa(1)
    assert [p.default_source for p in read_parts(DatasetSpec(str(tmp_path / "set"), name="hard"))] == ["set/hard"]
    with pytest.raises(DataError, match=r"set \(train\): cannot be loaded"):
        read(tmp_path / "set")


def test_hub_ids_are_handed_to_load_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def load(path: str, name: str | None = None, split: str | None = None) -> datasets.Dataset:
        calls.append((path, name, split))
        return datasets.Dataset.from_list(qa(2)).with_format("numpy")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read("owner/set") == qa(2)
    assert read("owner/set", name="main", split="test[:5]") == qa(2)
    assert calls == [("owner/set", None, "train"), ("owner/set", "main", "test[:5]")]
    parts = read_parts(DatasetSpec("owner/set", name="main"))
    assert parts[0].default_source == "set/main"
    assert next(iter(parts[0].rows())).where == "owner/set (main, train), row 1"


@pytest.mark.parametrize("error", [ConnectionError, ValueError, datasets.exceptions.DatasetNotFoundError])
def test_what_the_hub_answers_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: type[Exception]
) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise error("it is not there")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"owner/set \(train\): cannot be loaded: it is not there\. Nor is there"):
        read("owner/set")


def test_a_missing_file_is_no_hub_error(tmp_path: Path, write_jsonl: WriteLines) -> None:
    write_jsonl("data/train.jsonl", qa(1))
    with pytest.raises(DataError, match=r"no such file or folder.*similar there: 'train\.jsonl'"):
        read(tmp_path / "data" / "tran.jsonl")
    with pytest.raises(DataError, match=r"similar there: 'train\.jsonl'"):
        read(tmp_path / "data" / "train.json")
    with pytest.raises(DataError, match=r"folder '.*dat' does not exist; similar there: 'data'"):
        read(tmp_path / "dat" / "train.jsonl")
    with pytest.raises(DataError, match="has no similar name"):
        read(tmp_path / "data" / "qqqqqqqq.csv")


def test_a_folder_here_tells_a_misspelt_path_from_a_hub_id(
    tmp_path: Path, write_jsonl: WriteLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl("data/mathmix/train.jsonl", qa(1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(qa(2)))
    with pytest.raises(DataError, match=r"data/mathmx: no such file or folder.*similar there: 'mathmix'"):
        read("data/mathmx")
    assert read("data/gsm8k") == qa(2)


def test_folders_and_files_that_do_not_serve(tmp_path: Path, write_jsonl: WriteLines) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="unknown kind of file"):
        read(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"should hold files.*Found 'notes\.txt'"):
        read(tmp_path)
    write_jsonl("twice/a.jsonl", qa(1))
    write_jsonl("twice/a.json", qa(1))
    with pytest.raises(DataError, match="the same rows twice"):
        read(tmp_path / "twice")


@pytest.mark.parametrize(
    "split, expected",
    [("train", range(10)), ("train[:3]", range(3)), ("train[-2:]", (8, 9)), ("train[50%:]", range(5, 10)),
     ("train[:100]", range(10)), ("train[2:4]+train[:1]", (2, 3, 0))],
)  # fmt: skip
def test_slices(write_jsonl: WriteLines, split: str, expected: Any) -> None:
    path = write_jsonl("a.jsonl", qa(10))
    assert read(path, split=split) == [qa(10)[i] for i in expected]


def test_bad_slices(write_jsonl: WriteLines) -> None:
    path = write_jsonl("test.jsonl", qa(10))
    assert len(read(path, split="test[:2]")) == 2
    with pytest.raises(DataError, match="cannot cut split"):
        read(path, split="train[3")
    with pytest.raises(DataError, match="no split 'validation'"):
        read(path, split="validation[:3]")
