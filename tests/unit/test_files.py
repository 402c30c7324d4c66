"""Files that are there whole or not at all, and lines of JSON."""

from pathlib import Path

import pytest

from corebatch.errors import DataError
from corebatch.files import read_objects, replacing, write_text


def test_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_text(path, "old ü")

    def fails(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old ü"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def half(part: Path) -> None:
        part.write_text("begun")
        raise ValueError("half")

    with pytest.raises(ValueError, match="half"), replacing(tmp_path / "file") as part:
        half(part)
    assert not list(tmp_path.iterdir())


def test_objects_come_with_the_numbers_of_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "x\u2028y"}\n\n{"b": 2}', encoding="utf-8-sig")
    assert list(read_objects(path)) == [(1, {"a": "x\u2028y"}), (3, {"b": 2})]


@pytest.mark.parametrize(
    "content, found",
    [
        (b"{}\n{", "rows.jsonl:2 should be JSON. Found: "),
        (b"[1]", "rows.jsonl:1 should be a JSON object. Found list."),
        (b"\xff", "rows.jsonl should be a readable JSONL file in UTF-8. Found: "),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_objects(tmp_path / "rows.jsonl"))
    assert found in str(caught.value)
