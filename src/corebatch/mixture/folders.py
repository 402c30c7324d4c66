"""Which files of a folder hold rows. What is neither read nor on the lists below is an error that names it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from corebatch.errors import DataError
from corebatch.mixture.names import KINDS_IN_WORDS, data_kind, data_name, data_stem, data_suffix

NOT_ROWS = frozenset(("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"))
PASSED_OVER = re.compile(
    r"[.].*|__.*|_success|_metadata|_common_metadata|_committed_\d+|_started_\d+"
    r"|(?:readme|licen[cs]e|copying|notice|authors|changelog|citation|credits|requirements|makefile|sha\d+sums|md5sums)"
    r"(?:[-._].*)?|thumbs\.db|desktop\.ini"
    r"|.*\.(?:md|rst|bib|py|ipynb|sh|ya?ml|toml|cfg|crc|md5|sha\d+|lock|log|png|jpe?g|gif|svg|webp)",
    re.IGNORECASE,
)
"""Names of files and folders that belong to a data set and hold no rows: they are not read, in silence."""

NOT_READ = {
    "_delta_log": "a Delta table, whose files may hold deleted rows. Export it as Parquet",
    "_temporary": "what a job writes before it is done. Let it finish, or remove that folder",
    "_spark_metadata": "a stream's output, whose files may be those of failed attempts. Export it as Parquet",
}


def data_files(folder: Path, label: str) -> list[Path]:
    """All files of rows below a folder, in the order of their paths; links are followed. Raises DataError: a file of
    another kind, a link to nothing, a folder that cannot be read as a folder of files, no file at all, or the same rows
    as two kinds of files."""
    found = sorted(_files(folder, label))
    files = rows_among(found, label)
    if not files:
        names = ", ".join(repr(entry.name) for entry in sorted(folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{label}: should hold files {KINDS_IN_WORDS}. Found {names}.")
    return files


def rows_among(found: Iterable[Path], label: str) -> list[Path]:
    """The files of rows among those found, in their order; errors as `data_files`."""
    files, unknown = [], []
    for path in found:
        if path.name.lower() in NOT_ROWS or (path.name.startswith((".", "__"))):
            continue
        if data_suffix(path):
            files.append(path)
        elif not PASSED_OVER.fullmatch(path.name):
            unknown.append(path)
    if unknown and files:
        names = ", ".join(repr(str(path)) for path in unknown[:5]) + (" and more" if len(unknown) > 5 else "")
        raise DataError(
            f"{label}: holds files of a kind that is not read: {names}. Expected {KINDS_IN_WORDS}. Convert or remove "
            f"them, or say which files to read by a pattern, as in path: {label}/*{data_suffix(files[0])}"
        )
    _refuse_copies(files, label)
    return files


def stated_columns(path: Path) -> dict[str, str | None]:
    """The columns that folders of the kind column=value state, as Hive and Spark write them."""
    pairs = [part.split("=", 1) for part in path.parent.parts if re.match(r"\w+=.", part)]
    return {name: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for name, value in pairs}


def _files(folder: Path, label: str) -> Iterator[Path]:
    seen: dict[str, str] = {}
    for base, names, files in os.walk(folder, onerror=_refuse, followlinks=True):
        here = os.path.realpath(base)
        if here in seen:
            raise DataError(f"{label}: holds one folder twice, as {seen[here]!r} and {base!r}.")
        seen[here] = base
        for name in set(names) & NOT_READ.keys():
            raise DataError(f"{label}: holds {os.path.join(base, name)!r}, which is {NOT_READ[name]}.")
        if base != str(folder) and {"state.json", "dataset_dict.json"} & set(files):
            raise DataError(f"{label}: holds {base!r}, a data set of save_to_disk: give it an entry of its own.")
        names[:] = [name for name in names if not name.startswith((".", "__"))]
        for name in files:
            path = Path(base, name)
            if not path.is_file() and not name.startswith("."):
                raise DataError(f"{label}: {str(path)!r} is a link to nothing, or no file.")
            yield path


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read: {error}.") from error


def _refuse_copies(files: Iterable[Path], label: str) -> None:
    """Raises DataError where the same rows seem to be there as two kinds of files, or packed and unpacked."""
    kinds: dict[tuple[Path, str], Path] = {}
    names: dict[tuple[Path, str], Path] = {}
    for path in files:
        other = kinds.setdefault((path.parent, data_stem(path)), path)
        same = names.setdefault((path.parent, data_name(path)), path)
        other = same if same is not path else other
        if data_kind(other) != data_kind(path) or same is not path:
            raise DataError(
                f"{label}: holds {data_stem(path) or data_name(path)!r} as {data_suffix(other)} and as "
                f"{data_suffix(path)}, probably the same rows twice. Give one of them as `path`, by a pattern if "
                "there are many."
            )
