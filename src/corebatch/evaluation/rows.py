"""Rows of a task's data: JSONL, Parquet and TSV files, folders of them, and hub ids."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from corebatch.errors import DataError
from corebatch.files import read_objects

SUFFIXES = (".jsonl", ".json", ".parquet", ".tsv")
SPLIT_WORDS: Mapping[str, tuple[str, ...]] = {
    "validation": ("validation", "valid", "val", "dev"),
    "train": ("train", "training"),
    "test": ("test",),
}
"""How the name of a file begins that holds a split."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row, and where it was read, as messages say it."""

    where: str
    values: Mapping[str, Any]


def read_rows(path: str | PathLike[str], *, config: str | None = None, split: str | None = None) -> list[Row]:
    """All rows of a file, of a folder's split, or of a data set on the hub.

    Args:
        path: a file (.jsonl, .json with an object a line, .parquet, .tsv with a header); a folder with files that are
            named after splits, itself or in a subfolder named like `config`; a folder of `save_to_disk`; any other
            folder that `datasets.load_dataset` knows; or a hub id.
        config: the configuration, such as "boolq" of "super_glue".
        split: "validation" by default; goes with folders and hub ids.

    Raises:
        DataError: nothing there, no row, or one that cannot be read; the file and the line or row are named.
    """
    file = Path(path).expanduser()
    if file.is_file():
        if split is not None:
            raise DataError(f"{file} is one file, so it should stand without a split. Found split {split!r}.")
        rows = list(_file_rows(file))
    elif file.is_dir():
        rows = _folder_rows(file, config, split or "validation")
    elif _looks_local(str(path)):
        raise DataError(f"{path} should be a file, a folder or a hub id. Found nothing there.")
    else:
        rows = _loaded_rows(str(path), config, split or "validation")
    if not rows:
        raise DataError(f"{path} should hold at least one row. Found none.")
    return rows


def read_lines(file: Path) -> Iterator[Row]:
    """The objects of a JSONL file; blank lines are passed over. Raises DataError: the file or a line cannot be read;
    both are named."""
    return (Row(f"{file}:{number}", values) for number, values in read_objects(file))


def _file_rows(file: Path) -> Iterator[Row]:
    suffix = file.suffix.lower()
    if suffix in (".jsonl", ".json"):
        return read_lines(file)
    if suffix == ".parquet":
        return _parquet_rows(file)
    if suffix == ".tsv":
        return _tsv_rows(file)
    raise DataError(f"{file} should end in {', '.join(SUFFIXES)}. Found {suffix or 'no suffix'!r}.")


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        rows = pq.read_table(file).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} should be a readable Parquet file. Found: {error}.") from error
    return (Row(f"{file}, row {number}", values) for number, values in enumerate(rows, 1))


def _tsv_rows(file: Path) -> Iterator[Row]:
    """GLUE's own files: a header, tabs, and quotes that are plain characters."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            header = next(table, [])
            for cells in table:
                if len(cells) != len(header):
                    raise DataError(
                        f"{file}:{table.line_num} should have {len(header)} cells, as the first line. "
                        f"Found {len(cells)}."
                    )
                yield Row(f"{file}:{table.line_num}", dict(zip(header, cells, strict=True)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} should be a readable TSV file in UTF-8. Found: {error}.") from error


def _folder_rows(folder: Path, config: str | None, split: str) -> list[Row]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _loaded_rows(str(folder), config, split, saved=True)
    for inside in (_subfolder(folder, config), folder):
        if inside is not None and (files := _split_files(inside, split)):
            return [row for file in files for row in _file_rows(file)]
    return _loaded_rows(str(folder), config, split)


def _subfolder(folder: Path, config: str | None) -> Path | None:
    """`BoolQ` for "boolq", `SST-2` for "sst2"."""
    if config is None:
        return None
    named = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and _plain(entry.name) == _plain(config)]
    return named[0] if named else None


def _split_files(folder: Path, split: str) -> list[Path]:
    """The files of a split, shards in order; of one kind, the first of SUFFIXES, so that no row comes twice."""
    words = SPLIT_WORDS.get(split, (split,))
    found = [file for file in sorted(folder.iterdir()) if file.is_file() and file.name.lower().startswith(words)]
    for suffix in SUFFIXES:
        if of_kind := [file for file in found if file.suffix.lower() == suffix]:
            return of_kind
    return []


def _loaded_rows(path: str, config: str | None, split: str, *, saved: bool = False) -> list[Row]:
    import datasets
    import pyarrow as pa

    label = f"{path} ({', '.join(part for part in (config, split) if part)})"
    try:
        if saved:
            loaded = datasets.load_from_disk(path)
            data = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            data = datasets.load_dataset(path, config, split=split)
    except (OSError, ValueError, KeyError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{label} should be a data set that can be loaded. Found: {error}") from error
    return [Row(f"{label}, row {number}", values) for number, values in enumerate(data.with_format(None), 1)]


def _looks_local(path: str) -> bool:
    return path.startswith(("/", ".", "~")) or path.count("/") > 1 or path.endswith((*SUFFIXES, "/"))


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
