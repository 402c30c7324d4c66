"""Folders, patterns and lists: every file is read, or named."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from mixture_rows import WriteLines, qa

from corebatch.errors import ConfigError, DataError
from corebatch.mixture import DatasetSpec, load_mixture, parse_spec
from corebatch.mixture.reading import read_parts


def labels(path: Any, base: Path, **fields: Any) -> list[str]:
    parts = read_parts(parse_spec({"path": path, **fields}))
    return [part.reader.label.removeprefix(f"{base}/") for part in parts for _ in part.rows()]


@pytest.mark.parametrize(
    "name",
    ["part-001.jsonl.lz4", "part-001.txt", "part-001.xml", "part-001.jsonl.bak", "part-001", "part-001.tar.gz",
     "sub/part-001.zip", "part-001.jsonl.gzip", "part-001.xlsx"],
)  # fmt: skip
def test_a_file_of_another_kind_in_a_folder_is_named(tmp_path: Path, write_jsonl: WriteLines, name: str) -> None:
    write_jsonl("set/part-000.jsonl", qa(2))
    write_jsonl(f"set/{name}", qa(1))
    with pytest.raises(DataError, match=rf"{name}'.*Convert or remove them, or say which.*set/\*\.jsonl"):
        labels(str(tmp_path / "set"), tmp_path)
    assert len(labels(str(tmp_path / "set" / "*.jsonl"), tmp_path)) == 2


def test_a_shard_that_is_damaged_is_named(tmp_path: Path, write_jsonl: WriteLines, tokenizer: Any) -> None:
    write_jsonl("set/part-000.jsonl", qa(2))
    (tmp_path / "set/part-001.jsonl.zst").write_bytes(b"(\xb5/\xfd\x04X")
    with pytest.raises(DataError, match=r"part-001\.jsonl\.zst, after line 0: cannot be read: Truncated"):
        load_mixture([str(tmp_path / "set")], tokenizer)


def test_what_belongs_to_a_folder_and_holds_no_rows(tmp_path: Path, write_jsonl: WriteLines) -> None:
    write_jsonl("set/part-000.jsonl", qa(2))
    for name in (
        *("README.md", "LICENSE", "LICENSE.txt", "_SUCCESS", "._SUCCESS.crc", ".part-000.jsonl.crc", "script.py"),
        *(".gitattributes", ".DS_Store", "dataset_infos.json", "part-000.jsonl.sha256", "_committed_123"),
    ):
        (tmp_path / "set" / name).write_text("no rows")
    assert len(labels(str(tmp_path / "set"), tmp_path)) == 2


@pytest.mark.parametrize("name", ["_delta_log", "_temporary", "_spark_metadata"])
def test_folders_whose_files_are_not_all_rows(tmp_path: Path, write_jsonl: WriteLines, name: str) -> None:
    write_jsonl("set/part-000.jsonl", qa(2))
    (tmp_path / "set" / name).mkdir()
    with pytest.raises(DataError, match=f"{name}', which is"):
        labels(str(tmp_path / "set"), tmp_path)


def test_links(tmp_path: Path, write_jsonl: WriteLines) -> None:
    target = write_jsonl("elsewhere/b.jsonl", qa(1))
    write_jsonl("set/a.jsonl", qa(1))
    (tmp_path / "set/linked").symlink_to(target.parent)
    assert labels(str(tmp_path / "set"), tmp_path) == ["set/a.jsonl", "set/linked/b.jsonl"]
    (tmp_path / "set/gone.jsonl").symlink_to("nowhere.jsonl")
    with pytest.raises(DataError, match=r"gone\.jsonl' is a link to nothing"):
        labels(str(tmp_path / "set"), tmp_path)
    (tmp_path / "set/gone.jsonl").unlink()
    (tmp_path / "set/round").symlink_to(tmp_path / "set")
    with pytest.raises(DataError, match="holds one folder twice"):
        labels(str(tmp_path / "set"), tmp_path)


def test_saved_sets_in_a_folder(tmp_path: Path, write_jsonl: WriteLines) -> None:
    write_jsonl("set/a.jsonl", qa(1))
    datasets.Dataset.from_list(qa(3)).save_to_disk(tmp_path / "set" / "saved")
    with pytest.raises(DataError, match=r"set/saved', a data set of save_to_disk: give it an entry of its own"):
        labels(str(tmp_path / "set"), tmp_path)


@pytest.mark.parametrize("name", ["more.jsonl", "data-00001-of-00002.arrow", "sub/more.csv"])
def test_a_file_that_a_saved_set_does_not_name(tmp_path: Path, write_jsonl: WriteLines, name: str) -> None:
    saved = datasets.Dataset.from_list(qa(3))
    saved.save_to_disk(tmp_path / "set")
    datasets.load_from_disk(str(tmp_path / "set")).map(lambda row: {"double": 2})  # leaves a file there
    assert len(labels(str(tmp_path / "set"), tmp_path)) == 3
    stray = write_jsonl(f"set/{name}", qa(1))
    with pytest.raises(DataError, match=f"whose record does not name '{stray}'"):
        labels(str(tmp_path / "set"), tmp_path)


def test_packed_and_unpacked_shards_are_read_but_no_shard_twice(tmp_path: Path, write_jsonl: WriteLines) -> None:
    write_jsonl("set/part-000.jsonl", qa(1))
    (tmp_path / "set/part-001.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}'))
    assert labels(str(tmp_path / "set"), tmp_path) == ["set/part-000.jsonl", "set/part-001.jsonl.gz"]
    (tmp_path / "set/part-000.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}'))
    with pytest.raises(DataError, match="the same rows twice"):
        labels(str(tmp_path / "set"), tmp_path)


def test_folders_state_columns(tmp_path: Path, write_jsonl: WriteLines, tokenizer: Any) -> None:
    write_jsonl("set/source=gsm%208k/part-0.jsonl", qa(2))
    write_jsonl("set/source=svamp/lang=de/part-0.jsonl", qa(1))
    mixture = load_mixture([str(tmp_path / "set")], tokenizer)
    assert {name: counts.rows for name, counts in mixture.counts.items()} == {"gsm 8k": 2, "svamp": 1}
    parts = read_parts(DatasetSpec(str(tmp_path / "set")))
    assert next(iter(parts[1].rows())).values == {"source": "svamp", "lang": "de", **qa(1)[0]}


def test_patterns(tmp_path: Path, write_jsonl: WriteLines) -> None:
    for name in ("a/x.jsonl", "b/x.jsonl", "b/deep/y.jsonl", "c.csv.d/z.jsonl"):
        write_jsonl(name, qa(1))
    (tmp_path / "README.md").write_text("no rows")
    assert labels(f"{tmp_path}/*/x.jsonl", tmp_path) == ["a/x.jsonl", "b/x.jsonl"]
    assert labels(f"{tmp_path}/[ab]/*.jsonl", tmp_path) == ["a/x.jsonl", "b/x.jsonl"]
    everything = ["a/x.jsonl", "b/deep/y.jsonl", "b/x.jsonl", "c.csv.d/z.jsonl"]
    assert labels(f"{tmp_path}/**", tmp_path) == labels(f"{tmp_path}/*", tmp_path) == everything
    assert labels(f"{tmp_path}/**/*.jsonl", tmp_path, split="train[1:3]") == everything[1:3]


def test_a_pattern_without_a_match(tmp_path: Path, write_jsonl: WriteLines) -> None:
    write_jsonl("set/a.jsonl", qa(1))
    with pytest.raises(
        DataError, match=r"\*\.csv: the pattern matches no file of rows\. The folder '.*set' holds 'a\."
    ):
        labels(f"{tmp_path}/set/*.csv", tmp_path)
    with pytest.raises(DataError, match=r"matches no file of rows\. The folder '.*sat' does not exist.*'set'"):
        labels(f"{tmp_path}/sat/*.csv", tmp_path)
    (tmp_path / "set" / "README.md").write_text("x")
    with pytest.raises(DataError, match="The 1 that it matches are no files of rows"):
        labels(f"{tmp_path}/set/*.md", tmp_path)
    with pytest.raises(DataError, match="Braces are not expanded"):
        labels(f"{tmp_path}/set/{{a,b}}.jsonl", tmp_path)


def test_a_name_with_the_marks_of_a_pattern(tmp_path: Path, write_jsonl: WriteLines) -> None:
    path = write_jsonl("a[1].jsonl", qa(1))
    write_jsonl("a1.jsonl", qa(1))
    assert labels(str(path), tmp_path) == ["a[1].jsonl"]


def test_a_pattern_over_splits_needs_a_choice(tmp_path: Path, write_jsonl: WriteLines) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        write_jsonl(f"set/{name}", qa(1))
    with pytest.raises(DataError, match=r"several splits \(test: .*train: .*Give `split`"):
        labels(f"{tmp_path}/set/*.jsonl", tmp_path)
    assert labels(f"{tmp_path}/set/*.jsonl", tmp_path, split="test") == ["set/test.jsonl"]
    assert labels(f"{tmp_path}/set/te*.jsonl", tmp_path) == ["set/test.jsonl"]


def test_lists(tmp_path: Path, write_jsonl: WriteLines, tokenizer: Any) -> None:
    one, two = write_jsonl("b.jsonl", qa(2)), write_jsonl("a/x.jsonl", qa(3))
    assert labels([str(one), str(two.parent)], tmp_path) == ["b.jsonl"] * 2 + ["a/x.jsonl"] * 3
    assert labels([str(one), f"{tmp_path}/a/*"], tmp_path, split="train[1:3]") == ["b.jsonl", "a/x.jsonl"]
    spec = parse_spec({"path": [str(one), str(two)]})
    assert spec == DatasetSpec((str(one), str(two)))
    assert hash(spec) == hash(DatasetSpec([str(one), str(two)]))
    assert list(load_mixture([spec], tokenizer).counts) == ["b", "x"]
    with pytest.raises(DataError, match=r"x\.jsonl: has no split 'test'"):
        labels([str(write_jsonl("test.jsonl", qa(1))), str(two)], tmp_path, split="test")


def test_the_same_file_twice(tmp_path: Path, write_jsonl: WriteLines) -> None:
    path = write_jsonl("a.jsonl", qa(2))
    for again in (str(path), f"{tmp_path}/*.jsonl", f"{tmp_path}/./a.jsonl"):
        with pytest.raises(DataError, match=r"names the same file twice.*`weight: 2`"):
            labels([str(path), again], tmp_path)
    (tmp_path / "latest.jsonl").symlink_to(path)
    with pytest.raises(DataError, match=r"as .*a\.jsonl and as .*latest\.jsonl"):
        labels(str(tmp_path), tmp_path)


@pytest.mark.parametrize("path", [[], [""], ["a.jsonl", 3], {"a": "b"}, None])
def test_bad_paths(path: Any) -> None:
    with pytest.raises(ConfigError, match="`path`"):
        parse_spec({"path": path})


def test_a_configuration_of_a_file(write_jsonl: WriteLines) -> None:
    with pytest.raises(ConfigError, match="`name` goes with a hub id"):
        read_parts(DatasetSpec(str(write_jsonl("a.jsonl", qa(1))), name="main"))


@pytest.mark.parametrize("path", ["s3://bucket/a.jsonl", "https://example.org/a.jsonl", "hf://datasets/a/b/*.jsonl"])
def test_addresses(path: str) -> None:
    with pytest.raises(DataError, match="Found an address"):
        read_parts(DatasetSpec(path))


def test_hub_ids_stand_alone(write_jsonl: WriteLines) -> None:
    with pytest.raises(DataError, match="needs an entry of its own"):
        read_parts(DatasetSpec((str(write_jsonl("a.jsonl", qa(1))), "owner/set")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read(tmp_path: Path, write_jsonl: WriteLines) -> None:
    write_jsonl("set/a.jsonl", qa(1))
    closed = write_jsonl("set/closed/b.jsonl", qa(1)).parent
    closed.chmod(0)
    try:
        with pytest.raises(DataError, match="closed: cannot be read"):
            labels(str(tmp_path / "set"), tmp_path)
    finally:
        closed.chmod(0o700)
