"""From a spec to the parts that hold its rows: a file, a folder of files, a saved folder, or the hub.

Local files are streamed and never copied into a cache. Hub ids, and local folders whose README states
configurations (or for which `name` is given), go through `datasets.load_dataset` and its usual cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import datasets
import pyarrow as pa  # type: ignore[import-untyped]

from corebatch.errors import DataError
from corebatch.mixture.json_files import JsonDocumentReader, JsonLinesReader
from corebatch.mixture.names import (
    DATA_SUFFIXES,
    data_stem,
    data_suffix,
    looks_local,
    nearby,
    source_of,
    split_of,
)
from corebatch.mixture.rows import Part, RowReader
from corebatch.mixture.spec import DatasetSpec
from corebatch.mixture.table_files import CsvReader, DatasetReader, ParquetReader, load_saved

READERS: dict[str, Callable[[Path, str], RowReader]] = {
    ".jsonl": JsonLinesReader,
    ".json": JsonDocumentReader,
    ".csv": CsvReader,
    ".parquet": ParquetReader,
}
NOT_ROWS = frozenset({"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"})

_SPLIT_NAMES = re.compile(r"(?:^|\+)\s*([\w.-]+)")


def read_parts(spec: DatasetSpec) -> list[Part]:
    """The parts of one spec, in order. Files are opened only when their rows are asked for (Parquet's head
    apart).

    Raises:
        DataError: a missing file (with what is similar nearby), an unknown kind of file, a folder without
            data files, an unknown split, or whatever the hub answers.
    """
    path = Path(spec.path).expanduser()
    if path.is_file():
        return _choose(_file_splits(path, spec.path), spec)
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _choose(_saved_splits(path, spec.path), spec)
        if spec.name is not None or _states_configurations(path):
            return [_load_dataset(spec)]
        return _choose(_folder_splits(path, spec.path), spec)
    if looks_local(spec.path):
        raise DataError(f"{spec.path}: no such file or folder. {nearby(path)}")
    return [_load_dataset(spec)]


def _file_splits(path: Path, label: str) -> dict[str, list[Part]]:
    part = Part(reader=_reader(path, label), default_source=source_of(path))
    return {"train": [part], split_of(Path(path.name)): [part]}  # a lone file is also the split that it names


def _saved_splits(path: Path, label: str) -> dict[str, list[Part]]:
    saved = load_saved(path, label)
    source = source_of(path)
    if isinstance(saved, datasets.DatasetDict):
        return {
            str(name): [Part(reader=DatasetReader(dataset, f"{label} ({name})"), default_source=source)]
            for name, dataset in saved.items()
        }
    part = Part(reader=DatasetReader(saved, label), default_source=source)
    return {"train": [part], str(saved.split or "train"): [part]}


def _folder_splits(folder: Path, label: str) -> dict[str, list[Part]]:
    """All data files below a folder, by split, in the order of their paths; hidden ones are passed over."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and data_suffix(path)
        and path.name not in NOT_ROWS
        and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    ]
    if not files:
        found = ", ".join(repr(entry.name) for entry in sorted(folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{label}: should hold files {', '.join(DATA_SUFFIXES)}. Found {found}.")
    splits: dict[str, list[Part]] = {}
    seen: dict[tuple[Path, str], str | None] = {}
    for path in files:
        key = (path.parent, data_stem(path))
        if seen.setdefault(key, data_suffix(path)) != data_suffix(path):
            raise DataError(
                f"{label}: holds '{key[1]}' as {seen[key]} and as {data_suffix(path)}, probably the same "
                "rows twice. Give one of the files as `path`."
            )
        inside = path.relative_to(folder)
        part = Part(reader=_reader(path, str(Path(label) / inside)), default_source=source_of(path))
        splits.setdefault(split_of(inside), []).append(part)
    return splits


def _reader(path: Path, label: str) -> RowReader:
    suffix = data_suffix(path)
    if suffix is None:
        raise DataError(f"{label}: unknown kind of file. Expected one of {', '.join(DATA_SUFFIXES)}.")
    return READERS[suffix.removesuffix(".gz")](path, label)


def _states_configurations(folder: Path) -> bool:
    """Whether the folder has the layout of a hub data set with configurations in its README's head."""
    readme = folder / "README.md"
    if not readme.is_file():
        return False
    head = re.match(r"---\s*\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    return head is not None and re.search(r"^configs:", head.group(1), re.MULTILINE) is not None


def _load_dataset(spec: DatasetSpec) -> Part:
    split = spec.split or "train"
    label = f"{spec.path} ({', '.join(filter(None, (spec.name, split)))})"
    local = Path(spec.path).expanduser()
    path = str(local) if local.is_dir() else spec.path
    try:
        dataset = datasets.load_dataset(path, spec.name, split=split)
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        hint = "" if local.is_dir() else f" Nor is there a file or folder '{spec.path}' here. {nearby(local)}"
        raise DataError(f"{label}: cannot be loaded: {_first_line(error)}{hint}") from error
    source = Path(spec.path).name
    named = spec.name is not None and spec.name != "default"
    return Part(reader=DatasetReader(dataset, label), default_source=f"{source}/{spec.name}" if named else source)


def _choose(splits: Mapping[str, Sequence[Part]], spec: DatasetSpec) -> list[Part]:
    """The parts of the split that the spec asks for, cut where it has a slice."""
    wanted = spec.split or "train"
    for name in _SPLIT_NAMES.findall(wanted):
        if name not in splits:
            raise DataError(f"{spec.path}: has no split {name!r}. Found {', '.join(map(repr, sorted(splits)))}.")
    if wanted in splits:
        return list(splits[wanted])
    counts = {name: sum(part.reader.count() for part in splits[name]) for name in _SPLIT_NAMES.findall(wanted)}
    try:
        instructions = datasets.ReadInstruction.from_spec(wanted).to_absolute(counts)
    except (ValueError, AssertionError) as error:
        raise DataError(f"{spec.path}: cannot cut split {wanted!r}: {error}.") from error
    return [
        cut
        for instruction in instructions
        for cut in _cut(splits[instruction.splitname], instruction.from_, instruction.to)
    ]


def _cut(parts: Sequence[Part], start: int, stop: int) -> list[Part]:
    """Rows `start` to `stop` of the parts laid end to end."""
    chosen, offset = [], 0
    for part in parts:
        count = part.reader.count()
        first, last = max(start - offset, 0), min(stop - offset, count)
        if first < last:
            chosen.append(Part(reader=part.reader, default_source=part.default_source, start=first, stop=last))
        offset += count
    return chosen


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if lines[0].endswith(".") else lines[0] + "."
