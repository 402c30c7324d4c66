"""Each kind of file is read, or refused with the line and what to do."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from mixture_rows import qa

from corebatch.errors import DataError
from corebatch.mixture import DatasetSpec, load_mixture, opening
from corebatch.mixture.reading import read_parts

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def read(path: Path | str, **fields: Any) -> list[dict[str, Any]]:
    parts = read_parts(DatasetSpec(str(path), **fields))
    return [dict(raw.values) for part in parts for raw in part.rows()]


def wheres(path: Path) -> list[str]:
    return [raw.where.removeprefix(str(path)) for part in read_parts(DatasetSpec(str(path))) for raw in part.rows()]


def zst(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKERS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zst, "": bytes}
TEXTS = {
    ".jsonl": "\n".join(map(json.dumps, qa(3))),
    ".ndjson": "\n".join(map(json.dumps, qa(3))),
    ".json": json.dumps(qa(3)),
    ".csv": "prompt,completion\n" + "\n".join(",".join(row.values()) for row in qa(3)),
    ".tsv": "prompt\tcompletion\n" + "\n".join("\t".join(row.values()) for row in qa(3)),
}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("kind", TEXTS)
def test_every_kind_and_packing(tmp_path: Path, kind: str, packed: str) -> None:
    path = tmp_path / f"a{kind}{packed}"
    content = PACKERS[packed](TEXTS[kind].encode() + b"\n")
    path.write_bytes(content)
    assert read(path) == qa(3)
    if packed:
        path.write_bytes(content * 2 if kind == ".jsonl" else content)  # archives laid end to end
        assert len(read(path)) >= 3
        path.write_bytes(content[:-6])
        with pytest.raises(DataError, match=rf"a{kind}{packed}.*cannot be read"):
            read(path)
    path.with_name(path.name.upper()).write_bytes(content)
    assert read(path.with_name(path.name.upper())) == qa(3)


def test_arrow_files(tmp_path: Path) -> None:
    datasets.Dataset.from_list(qa(3)).save_to_disk(tmp_path / "saved")
    assert read(next((tmp_path / "saved").glob("*.arrow"))) == qa(3)
    (tmp_path / "a.arrow").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"a\.arrow: is not a readable Arrow file"):
        read(tmp_path / "a.arrow")


@pytest.mark.parametrize(
    "content, message",
    [
        (codecs.BOM_UTF16_LE + '{"text": "x"}'.encode("utf-16-le"), "UTF-16 text; convert it: iconv"),
        ('{"text": "x"}'.encode("utf-16-le"), "bytes of zero, as in UTF-16"),
        (gzip.compress(b'{"text": "x"}', mtime=0), r"a gzip file; its name should end in \.gz"),
        (zst(b'{"text": "x"}'), r"its name should end in \.zst"),
        (b"PK\x03\x04 sheet", "an Excel workbook"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_file_of_another_kind_than_its_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_the_line_of_a_bad_byte(tmp_path: Path, packed: str) -> None:
    text = "prompt,completion\n" + '"two\nlines",b\n' * 3 + "a,b\n" * 243 + "caf\xe9,b\n" + "a,b\n" * 9
    path = tmp_path / f"a.csv{packed}"
    path.write_bytes(PACKERS[packed](text.encode("cp1252")))
    with pytest.raises(DataError, match=r"a\.csv.*, line 251: is not UTF-8.*cp1252.*'café,b'.*iconv -f CP1252"):
        read(path)
    path = tmp_path / f"a.jsonl{packed}"
    path.write_bytes(PACKERS[packed](b'{"text": "x"}\n' * 250 + b'{"text": "caf\xe9"}\n'))
    with pytest.raises(DataError, match=r"line 251: is not UTF-8.*iconv"):
        read(path)
    path.write_bytes(PACKERS[packed]('{"text": "é'.encode()[:-1]))
    with pytest.raises(DataError, match=r"line 1: is not UTF-8.*probably cut"):
        read(path)


def test_columns_without_a_name(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion,,\na,b,,\nc,d\ne,f,,,\n")  # Excel
    assert read(path) == [{"prompt": a, "completion": b} for a, b in ("ab", "cd", "ef")]
    path.write_text(",prompt,completion\n0,a,b\n1,c,d\n")  # pandas
    assert read(path)[1] == {"column 1": "1", "prompt": "c", "completion": "d"}
    assert load_mixture([str(path)], tokenizer).counts["a"].rows == 2
    path.write_text("prompt,completion,,\na,b,,stray\n")
    assert read(path)[0]["column 4"] == "stray"
    path.write_text("prompt,completion,\na,b,,stray\n")
    with pytest.raises(DataError, match=r"line 2: should have 3 cells, as the first line. Found 4"):
        read(path)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_a_table_with_another_separator(tmp_path: Path, mark: str) -> None:
    (tmp_path / "a.csv").write_text(f"prompt{mark}completion\na{mark}b\n")
    with pytest.raises(DataError, match=r"line 1: should be column names separated by ','.*save the table"):
        read(tmp_path / "a.csv")


def test_carriage_returns_alone_end_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'prompt,completion\ra,b\r"c\rd",e\r')
    assert read(tmp_path / "a.csv") == [{"prompt": "a", "completion": "b"}, {"prompt": "c\rd", "completion": "e"}]


@pytest.mark.parametrize(
    "document, rows",
    [
        ({"messages": TURNS}, [{"messages": TURNS}]),
        ({"conversations": SHAREGPT, "id": "x"}, [{"conversations": SHAREGPT, "id": "x"}]),
        (TURNS, [{"messages": TURNS}]),
        (SHAREGPT, [{"conversations": SHAREGPT}]),
        ([TURNS, TURNS], [{"messages": TURNS}] * 2),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, [{"prompt": TURNS[:1], "completion": TURNS[1:]}]),
        ({"text": "x", "tags": ["a"]}, [{"text": "x", "tags": ["a"]}]),
        ({"input_ids": [1, 2], "labels": [1, 2]}, [{"input_ids": [1, 2], "labels": [1, 2]}]),
        ({"version": "1", "authors": ["me"], "rows": qa(2)}, qa(2)),
        ({"data": [{"messages": TURNS}]}, [{"messages": TURNS}]),
        ({"train": [TURNS, TURNS]}, [{"messages": TURNS}] * 2),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_what_a_document_holds(tmp_path: Path, document: Any, rows: Any, indent: int | None) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document, indent=indent))
    assert read(path) == rows
    assert len(read(path, split="train[:1]")) == 1


def test_a_document_that_may_be_a_row_or_hold_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"text": "about", "data": qa(2)}))
    with pytest.raises(DataError, match="may be one row, or hold rows in 'data'"):
        read(tmp_path / "a.json")


def test_lists_in_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(qa(2)) + "\n\n" + json.dumps(qa(1)[0]) + "\n" + json.dumps(TURNS) + "\n")
    assert read(path) == [*qa(2), *qa(1), {"messages": TURNS}]
    assert wheres(path) == [", line 1, row 1", ", line 1, row 2", ", line 3", ", line 4, row 1"]
    assert read(path, split="train[2:]") == [*qa(1), {"messages": TURNS}]
    path.write_text(json.dumps(qa(2), indent=1))
    with pytest.raises(
        DataError, match=r"line 1: is not valid JSON.*one JSON document over many lines: call it \.json"
    ):
        read(path)


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"text": "a", "text": "b"}', "line 1: has the key 'text' twice"),
        ('{"text": "a", "more": {"b": 1, "b": 2}}', "line 1: has the key 'b' twice"),
        ('{"text": "a"} garbage', "line 1: is not valid JSON: Extra data at column 15"),
        ('{"text": "a"}{"text": "b"}', "line 1: is not valid JSON: Extra data"),
        ('{"n": ' + "1" * 5000 + "}", "line 1: is not valid JSON: .*digits"),
    ],
)
def test_json_is_read_strictly(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.jsonl")


def test_numbers_that_python_writes_and_json_lacks(tmp_path: Path, tokenizer: Any) -> None:
    """Beside the text they do no harm; in its place they are refused."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "score": NaN, "most": Infinity}\n')
    assert load_mixture([str(path)], tokenizer).counts["a"].rows == 1
    path.write_text('{"text": NaN}\n')
    with pytest.raises(DataError, match=r"line 1: 'text' should be a string. Found nan"):
        load_mixture([str(path)], tokenizer)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_lines_are_bounded(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "LARGEST_ROW", 1000)
    monkeypatch.setattr(opening, "LARGEST_DOCUMENT", 1000)
    beginning = {"a.jsonl": '{"text": "x"}\n{"text": "', "a.csv": 'text\n"', "a.json": '[{"text": "'}[name]
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(beginning.encode() + b"x" * 10**6))
    place = r"a\.json\.gz: a JSON document.*JSON lines" if name == "a.json" else "line 2: should have at most 1,000"
    with pytest.raises(DataError, match=place):
        read(tmp_path / f"{name}.gz")


def test_a_cell_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corebatch.mixture.table_files.LARGEST_ROW", 1000)
    (tmp_path / "a.csv").write_text('text\n"' + "x\n" * 10**4)
    with pytest.raises(DataError, match="after line 1: cannot be read: field larger than field limit"):
        read(tmp_path / "a.csv")
