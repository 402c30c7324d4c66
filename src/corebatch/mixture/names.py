"""What names of files tell: their split, their source, and what a missing path may have meant."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

DATA_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")

SPLIT_WORDS = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "validation": "validation", "valid": "validation", "dev": "validation", "val": "validation",
}  # fmt: skip
"""The words by which `datasets` recognises splits in names."""

_SHARD = re.compile(r"[-_]\d{3,}(-of-\d+)?$")
_BETWEEN_WORDS = re.compile(r"[-._ 0-9]+")


def data_suffix(path: Path) -> str | None:
    """The one of DATA_SUFFIXES that the name ends in, or None."""
    name = path.name.lower()
    return max((suffix for suffix in DATA_SUFFIXES if name.endswith(suffix)), key=len, default=None)


def data_stem(path: Path) -> str:
    """The name without suffix and shard number: "train-00000-of-00002.parquet" -> "train"."""
    suffix = data_suffix(path)
    return _SHARD.sub("", path.name[: -len(suffix)] if suffix else path.name)


def split_of(path: Path) -> str:
    """The split that a file's name states, then its folders' names; "train" if none does."""
    for part in (data_stem(path), *reversed(path.parent.parts)):
        for word in _BETWEEN_WORDS.split(part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return "train"


def source_of(path: Path) -> str:
    """The source of a file's rows when nothing else states one: the file's stem, or its folder.

    "sets/algebra.jsonl" -> "algebra"; "sets/mathmix/train.jsonl" and "mathmix/data/train-00000.parquet" ->
    "mathmix", since a stem that only names a split does not tell one data set from another.
    """
    for candidate in (data_stem(path), *reversed(path.resolve().parent.parts)):
        if candidate.lower() not in SPLIT_WORDS and candidate.lower() != "data" and candidate.strip("/\\"):
            return candidate
    return data_stem(path)


def looks_local(path: str) -> bool:
    """Whether a path that does not exist was meant as a file or folder, and not as a hub id (owner/name)."""
    return (
        path.startswith(("/", "./", "../", "~", ".\\", "..\\"))
        or data_suffix(Path(path)) is not None
        or path.count("/") > 1
        or (path.count("/") == 1 and _beside_something_similar(Path(path)))
        or "\\" in path
        or path.endswith(("/", ".gz", ".txt", ".arrow", ".tsv", ".zip", ".zst", ".yaml", ".yml"))
    )


def _beside_something_similar(path: Path) -> bool:
    return path.parent.is_dir() and bool(_similar(path.name, path.parent))


def nearby(path: Path) -> str:
    """What exists near a missing path, as a sentence: similar names, or the folder that is missing."""
    folder = path.parent
    if not folder.is_dir():
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        return f"The folder '{path.parent}' does not exist{_similar(path.relative_to(folder).parts[0], folder)}."
    return f"Its folder exists{_similar(path.name, folder) or ' but has no similar name'}."


def _similar(name: str, folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    lowered = {entry.lower(): entry for entry in names}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.6)
    stem = data_stem(Path(name)).lower()
    close += [low for low in lowered if data_stem(Path(low)) == stem and low not in close]
    return f"; similar there: {', '.join(repr(lowered[low]) for low in close[:3])}" if close else ""
