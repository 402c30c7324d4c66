"""Which files are shards of one source, by the many ways in which tools name shards."""

from __future__ import annotations

from pathlib import Path

import pytest
from mixture_rows import WriteLines, qa

from corebatch.errors import DataError
from corebatch.mixture import DatasetSpec, load_mixture
from corebatch.mixture.names import source_of, split_of
from corebatch.mixture.reading import read_parts
from corebatch.mixture.tally import warn_of_many

SHARDS = {
    "case": ("part-00000-1f2e-c000.jsonl", "part-00001-9a8b-c000.jsonl"),
    "spark": (
        "part-00000-8a3c7c9e-1b1a-4f6e-a0f8-3c8a7e0a2ab7-c000.json.gz",
        "part-00001-8a3c7c9e-1b1a-4f6e-a0f8-3c8a7e0a2ab7-c000.json.gz",
    ),
    "hadoop": ("part-r-00000.csv", "part-r-00001.csv"),
    "databricks": ("part-00000-tid-42-ab-1-c000.snappy.parquet", "part-00001-tid-43-cd-1-c000.snappy.parquet"),
    "hub": ("train-00000-of-00012.parquet", "train-00011-of-00012.parquet"),
    "hub with hash": ("train-00000-of-00002-3b2a1c9e3d1b5a77.parquet", "train-00001-of-00002-91a2b3c4d5e6f708.parquet"),
    "split -l": ("split-aa.jsonl", "split-ab.jsonl"),
    "split": ("xaa.jsonl", "xab.jsonl"),
    "digits": ("000.jsonl", "001.jsonl"),
    "pile": ("00.jsonl.zst", "01.jsonl.zst"),
    "fineweb": ("000_00000.parquet", "001_00003.parquet"),
    "dask": ("part.0.parquet", "part.10.parquet"),
    "snowflake": ("data_0_0_0.csv.gz", "data_0_1_0.csv.gz"),
    "shard": ("shard_003.jsonl", "shard_004.jsonl"),
    "data": ("data.1.jsonl", "data.2.jsonl"),
    "slimpajama": ("chunk1/example_train_0.jsonl.zst", "chunk2/example_train_7.jsonl.zst"),
    "hashes": ("0a1b2c3d4e5f.jsonl", "9f8e7d6c5b4a.jsonl"),
    "n of m": ("train_1of4.json", "train_2of4.json"),
    "ranks": ("rank0.jsonl", "rank1.jsonl"),
    "uuids": ("023827cd-7ee8-42e6-aa7b-661731f4c70f_000000.jsonl", "123827cd-7ee8-42e6-aa7b-661731f4c70f_000000.jsonl"),
    "hive": ("lang=de/part-0.parquet", "lang=fr/part-0.parquet"),
}


@pytest.mark.parametrize("names", SHARDS.values(), ids=SHARDS)
def test_shards_have_the_folders_name(names: tuple[str, ...]) -> None:
    assert {source_of(Path("/sets/mathmix/data") / name) for name in names} == {"mathmix"}


@pytest.mark.parametrize(
    "names, source",
    [
        (("c4-train.00001-of-01024.json.gz", "c4-train.01023-of-01024.json.gz"), "c4-train"),
        (("gsm8k-part-1.jsonl", "gsm8k-part-2.jsonl"), "gsm8k"),
        (("arxiv_023827cd-7ee8-42e6-aa7b-661731f4c70f.jsonl", "arxiv_113827cd7ee842e6aa7b661731f4c70f.jsonl"), "arxiv"),
        (("my-data-00000-of-00002.jsonl", "my-data-00001-of-00002.jsonl"), "my-data"),
        (("cc_head-0000.json.gz", "cc_head-0611.json.gz"), "cc_head"),
    ],
)  # fmt: skip
def test_shards_with_a_name_of_their_own(names: tuple[str, ...], source: str) -> None:
    assert {source_of(Path("/sets/mathmix") / name) for name in names} == {source}


@pytest.mark.parametrize(
    "names",
    [
        ("gsm8k.jsonl", "svamp.jsonl"), ("level_1.jsonl", "level_2.jsonl"), ("gpt-3.jsonl", "gpt-4.jsonl"),
        ("data-en.jsonl", "data-fr.jsonl"), ("train_de.jsonl", "train_en.jsonl"), ("wiki_2023.csv", "wiki_2024.csv"),
        ("examples.jsonl", "dataset.jsonl"), ("part.jsonl", "output.jsonl"),
        ("xml.jsonl", "html.jsonl"), ("deadbeef.jsonl", "facade.jsonl"), ("en/part-0.jsonl", "fr/part-0.jsonl"),
    ],
)  # fmt: skip
def test_distinct_names_are_distinct_sources(names: tuple[str, ...]) -> None:
    assert len({source_of(Path("/sets/mathmix") / name) for name in names}) == len(names)


def test_a_folder_of_shards_is_one_source(write_jsonl: WriteLines, tmp_path: Path) -> None:
    for shard in ("part-00000-1f2e-c000", "part-00001-9a8b-c000"):
        write_jsonl(f"shards.d/{shard}.jsonl", qa(2))
    assert [part.default_source for part in read_parts(DatasetSpec(str(tmp_path / "shards.d")))] == ["shards.d"] * 2


@pytest.mark.parametrize(
    "name, split",
    [("split=test/part-0.jsonl", "test"), ("source=dev/part-0.jsonl", "train"), ("validation.001.jsonl", "validation")],
)
def test_splits_in_names(name: str, split: str) -> None:
    assert split_of(Path(name)) == split


def test_a_column_of_ids_is_no_column_of_sources(write_jsonl: WriteLines, tokenizer: object) -> None:
    rows = [{**row, "source": f"https://example.org/{i}"} for i, row in enumerate(qa(150))]
    path = write_jsonl("crawl.jsonl", rows)
    with pytest.raises(DataError, match=r"Found 150 sources in 150 rows.*ids or addresses.*column 'source'"):
        load_mixture([str(path)], tokenizer)
    assert list(load_mixture([{"path": str(path), "source": "crawl"}], tokenizer).counts) == ["crawl"]
    assert list(load_mixture([str(path)], tokenizer, source_column="site").counts) == ["crawl"]


def test_many_sources_are_said(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_many([str(i) for i in range(1000)], 3000, "source")
    assert not caplog.records
    warn_of_many([str(i) for i in range(1001)], 3000, "source")
    assert "1,001 sources in 3,000 rows" in caplog.text
