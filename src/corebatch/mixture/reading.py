"""From a spec to the parts that hold its rows: files, folders of files, patterns, saved folders, or the hub.

Local files are streamed and never copied into a cache. Hub ids, and local folders whose README states
configurations (or for which `name` is given), go through `datasets.load_dataset` and its usual cache.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa  # type: ignore[import-untyped]

from corebatch.errors import ConfigError, DataError
from corebatch.mixture.folders import data_files, rows_among, stated_columns
from corebatch.mixture.json_files import JsonDocumentReader, JsonLinesReader
from corebatch.mixture.names import KINDS_IN_WORDS, data_kind, looks_local, nearby, source_of, split_of
from corebatch.mixture.rows import Part, RowReader
from corebatch.mixture.spec import DatasetSpec
from corebatch.mixture.table_files import (
    ArrowReader,
    CsvReader,
    DatasetReader,
    FolderColumnsReader,
    ParquetReader,
    load_saved,
)

READERS: dict[str, Callable[[Path, str], RowReader]] = {
    ".jsonl": JsonLinesReader,
    ".ndjson": JsonLinesReader,
    ".json": JsonDocumentReader,
    ".csv": CsvReader,
    ".tsv": partial(CsvReader, separator="\t"),
    ".parquet": ParquetReader,
    ".arrow": ArrowReader,
}

Splits = dict[str, list[Part]]

_SPLIT_NAMES = re.compile(r"(?:^|\+)\s*([\w.-]+)")


def read_parts(spec: DatasetSpec) -> list[Part]:
    """The parts of one spec, in order. Files are opened only when their rows are asked for (heads of Parquet and Arrow
    apart). Raises DataError: a missing file (with what is similar nearby), a pattern that matches nothing, an unknown
    kind of file, a folder without data files, the same file twice, an unknown split, or whatever the hub answers;
    ConfigError: `name` where there are no configurations."""
    only = spec.paths[0] if len(spec.paths) == 1 else None
    if only is not None and _goes_through_datasets(only, spec):
        return [_load_dataset(only, spec)]
    if spec.name is not None:
        raise ConfigError(f"datasets: `name` goes with a hub id or a folder with configurations. Found {spec.label}.")
    found = [_splits(path, spec) for path in spec.paths]
    wanted = _SPLIT_NAMES.findall(spec.split or "train")
    for path, splits in zip(spec.paths, found, strict=True):
        for name in wanted:
            if name not in splits:
                known = ", ".join(map(repr, sorted(splits)))
                raise DataError(f"{path}: has no split {name!r}. Found {known}.")
    together = {name: [part for splits in found for part in splits[name]] for name in wanted}
    for parts in together.values():
        _refuse_repeats(parts, spec.label)
    return _choose(together, spec)


def _goes_through_datasets(path: str, spec: DatasetSpec) -> bool:
    local = Path(path).expanduser()
    if local.is_dir():
        saved = (local / "dataset_dict.json").exists() or (local / "state.json").exists()
        return not saved and (spec.name is not None or _states_configurations(local))
    return not local.exists() and not _is_pattern(path) and not looks_local(path)


def _is_pattern(path: str) -> bool:
    return bool(re.search(r"[*?\[]", path)) and "://" not in path and not Path(path).expanduser().exists()


def _splits(path: str, spec: DatasetSpec) -> Splits:
    """The parts of one local path, by split."""
    local = Path(path).expanduser()
    if _is_pattern(path):
        return _pattern_splits(path, spec)
    if local.is_file():
        part = _part(local, path)
        return {"train": [part], split_of(Path(local.name)): [part]}  # a lone file is also the split that it names
    if local.is_dir():
        if (local / "dataset_dict.json").exists() or (local / "state.json").exists():
            return _saved_splits(local, path)
        if _states_configurations(local):
            raise DataError(f"{path}: its README states configurations: give it an entry of its own, with `name`.")
        inside = [file.relative_to(local) for file in data_files(local, path)]
        return _by_split([(_part(local / file, str(Path(path) / file)), split_of(file)) for file in inside])
    raise DataError(_missing(path, spec))


def _by_split(parts: Sequence[tuple[Part, str]]) -> Splits:
    splits: Splits = {}
    for part, split in parts:
        splits.setdefault(split, []).append(part)
    return splits


def _pattern_splits(pattern: str, spec: DatasetSpec) -> Splits:
    """All matches, and all files of the folders among them; files that state several splits need a choice."""
    matches = [Path(match) for match in glob.glob(os.path.expanduser(pattern), recursive=True)]
    files = {file for match in matches for file in ([match] if match.is_file() else data_files(match, str(match)))}
    chosen = rows_among(sorted(files), pattern)
    if not chosen:
        raise DataError(f"{pattern}: the pattern matches no file of rows. {_inside(pattern, len(files))}")
    splits = _by_split([(_part(file, str(file)), split_of(Path(file.name))) for file in chosen])
    if len(splits) > 1 and spec.split is None:
        names = "; ".join(f"{name}: {parts[0].reader.label}" for name, parts in sorted(splits.items()))
        raise DataError(
            f"{pattern}: matches files of several splits ({names}). Give `split`, for instance train, or a pattern or "
            "a list that names the files of one."
        )
    if len(splits) == 1:  # files that the user has named are his training files, whatever their names say
        splits = {"train": next(iter(splits.values())), **splits}
    return splits


def _inside(pattern: str, passed_over: int) -> str:
    """What there is where a pattern looks, as a sentence."""
    if passed_over:
        return f"The {passed_over} that it matches are no files of rows."
    folder = Path(os.path.expanduser(re.split(r"[*?\[]", pattern)[0] + "x")).parent
    if not folder.is_dir():
        return nearby(folder / "x")
    names = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"The folder '{folder}' holds {shown or 'nothing'}."


def _missing(path: str, spec: DatasetSpec) -> str:
    if "://" in path:
        return f"{path}: `path` should be a file, a folder or a hub id. Found an address: fetch the file first."
    if not looks_local(path):
        return f"{path}: no such file or folder. A data set of the hub needs an entry of its own, not a list."
    braces = " Braces are not expanded: give a list of paths." if "{" in path else ""
    return f"{path}: no such file or folder. {nearby(Path(path).expanduser())}{braces}"


def _refuse_repeats(parts: Sequence[Part], label: str) -> None:
    seen: dict[tuple[int, int], RowReader] = {}
    for reader, file in ((part.reader, file) for part in parts for file in part.reader.files):
        state = file.stat()
        other = seen.setdefault((state.st_dev, state.st_ino), reader)
        if other is not reader:
            raise DataError(
                f"{label}: names the same file twice, as {other.label} and as {reader.label}. Give it once; "
                "`weight: 2` repeats rows."
            )


def _saved_splits(path: Path, label: str) -> dict[str, list[Part]]:
    saved = load_saved(path, label)
    _refuse_strays(path, saved, label)
    source = source_of(path)
    if isinstance(saved, datasets.DatasetDict):
        return {
            str(name): [Part(reader=DatasetReader(dataset, f"{label} ({name})"), default_source=source)]
            for name, dataset in saved.items()
        }
    part = Part(reader=DatasetReader(saved, label), default_source=source)
    return {"train": [part], str(saved.split or "train"): [part]}


def _refuse_strays(folder: Path, saved: Any, label: str) -> None:
    """Raises DataError for files of rows in a saved folder that its record does not name, so that nobody reads them."""
    tables = saved.values() if isinstance(saved, datasets.DatasetDict) else [saved]
    known = {Path(file["filename"]).resolve() for table in tables for file in table.cache_files}
    for file in rows_among(sorted(path for path in folder.rglob("*") if path.is_file()), label):
        if file.resolve() not in known and not file.name.startswith("cache-"):  # what `map` leaves there
            raise DataError(f"{label}: is a folder of save_to_disk whose record does not name {str(file)!r}.")


def _part(path: Path, label: str) -> Part:
    kind = data_kind(path)
    if kind is None:
        text = ' A text file does not say where rows begin: write JSON lines, {"text": ...} each.'
        raise DataError(
            f"{label}: unknown kind of file. Expected one of {KINDS_IN_WORDS}."
            + (text if path.name.lower().endswith(".txt") else "")
        )
    reader = READERS[kind](path, label)
    stated = stated_columns(Path(label))
    return Part(reader=FolderColumnsReader(reader, stated) if stated else reader, default_source=source_of(path))


def _states_configurations(folder: Path) -> bool:
    """Whether the folder has the layout of a hub data set with configurations in its README's head."""
    readme = folder / "README.md"
    if not readme.is_file():
        return False
    head = re.match(r"---\s*\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    return head is not None and re.search(r"^configs:", head.group(1), re.MULTILINE) is not None


def _load_dataset(path: str, spec: DatasetSpec) -> Part:
    split = spec.split or "train"
    label = f"{path} ({', '.join(filter(None, (spec.name, split)))})"
    local = Path(path).expanduser()
    try:
        dataset = datasets.load_dataset(str(local) if local.is_dir() else path, spec.name, split=split)
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        hint = "" if local.is_dir() else f" Nor is there a file or folder '{path}' here. {nearby(local)}"
        raise DataError(f"{label}: cannot be loaded: {_first_line(error)}{hint}") from error
    source = Path(path).name
    named = spec.name is not None and spec.name != "default"
    return Part(reader=DatasetReader(dataset, label), default_source=f"{source}/{spec.name}" if named else source)


def _choose(splits: Mapping[str, Sequence[Part]], spec: DatasetSpec) -> list[Part]:
    """The parts of the split that the spec asks for, cut where it has a slice."""
    wanted = spec.split or "train"
    if wanted in splits:
        return list(splits[wanted])
    counts = {name: sum(part.reader.count() for part in splits[name]) for name in _SPLIT_NAMES.findall(wanted)}
    try:
        instructions = datasets.ReadInstruction.from_spec(wanted).to_absolute(counts)
    except (ValueError, AssertionError) as error:
        raise DataError(f"{spec.label}: cannot cut split {wanted!r}: {error}.") from error
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
