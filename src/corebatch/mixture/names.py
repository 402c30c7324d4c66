"""What names of files tell: their kind, split and source, and what a missing path may have meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from pathlib import Path

from corebatch.mixture.opening import OPENERS

TEXT_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
DATA_SUFFIXES = (*TEXT_KINDS, ".parquet", ".arrow", *(kind + packed for packed in OPENERS for kind in TEXT_KINDS))
KINDS_IN_WORDS = f"{', '.join(TEXT_KINDS)} (each also {', '.join(OPENERS)}), .parquet, .arrow"

SPLIT_WORDS = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "validation": "validation", "valid": "validation", "dev": "validation", "val": "validation",
}  # fmt: skip
"""The words by which `datasets` recognises splits in names."""

SHARD_WORDS = frozenset(
    (
        "part", "parts", "shard", "shards", "chunk", "chunks", "file", "files", "split", "block", "batch", "slice",
        "segment", "piece", "bucket", "rank", "worker",
    )
)  # fmt: skip
"""Words that number the pieces of one data set."""

PLAIN_WORDS = frozenset(("data", "dataset", "example", "examples", "output", "out", "rows", "snapshots"))
"""Words that say no more than that there is data."""

_BETWEEN_WORDS = re.compile(r"[-._ 0-9=]+")
_SHARD = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?<=part)-(?:[rm]-)?\d{4,}(?:[-_.].*)?$",  # Spark, with whatever it writes behind the number
        r"(?:^|[-_.])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        r"[-_. ]*\d+[-_ ]?of[-_ ]?\d+$",
        r"(?:^|[-_. ]+)(?!(?:19|20)\d\d$)\d{3,}$",  # a year is no number of a shard
        r"(?:^|[-_.])(?=[a-f]*\d)[0-9a-f]{8,}$",
        r"^x(?:(?!ml)[a-z]{2}|\d+)$",  # as `split` names them
    )
)
_NUMBER = re.compile(r"(?<=[a-z])[-_. ]*\d[-_. \d]*$", re.IGNORECASE)
_LETTERS = re.compile(r"(?<=[a-z])[-_.]+(?:[a-z]{2}|aa[a-z])$", re.IGNORECASE)
_PACKED_PARQUET = re.compile(r"\.(?:snappy|gz|gzip|zstd|lz4|brotli)$", re.IGNORECASE)


def data_suffix(path: Path) -> str | None:
    """The one of DATA_SUFFIXES that the name ends in, or None."""
    name = path.name.lower()
    return max((suffix for suffix in DATA_SUFFIXES if name.endswith(suffix)), key=len, default=None)


def data_kind(path: Path) -> str | None:
    """The suffix without what packed the file: ".jsonl" for a.jsonl.gz."""
    suffix = data_suffix(path)
    return suffix and "." + suffix.split(".")[1]


def data_name(path: Path) -> str:
    """The name without suffix, shard numbers and all: "train-00000-of-00002.parquet" -> "train-00000-of-00002"."""
    suffix = data_suffix(path)
    name = path.name[: -len(suffix)] if suffix else path.name
    return _PACKED_PARQUET.sub("", name) if suffix == ".parquet" else name


def data_stem(path: Path) -> str:
    """The name without suffix and without what numbers a shard; empty where nothing else is in it.

    What goes, from the end of the name and repeatedly: N-of-M; numbers of three digits and more that are no year;
    UUIDs and hashes of eight hexadecimal digits and more; whatever Spark writes behind part-NNNNN; behind a word that
    numbers pieces or names a split, any number; behind one that numbers pieces, two letters (split-aa); and then that
    word, if another stands before it. "c4-train.00001-of-01024" -> "c4-train"; "gsm8k-part-3" -> "gsm8k".
    """
    stem = name = data_name(path)
    while True:
        tried = (pattern.sub("", stem) for pattern in _SHARD)
        shorter = next((text for text in tried if text != stem), stem)
        shorter = _without(_NUMBER, shorter, SHARD_WORDS | PLAIN_WORDS | SPLIT_WORDS.keys())
        shorter = _without(_LETTERS, shorter, SHARD_WORDS)
        if shorter != name and _last_word(shorter) in SHARD_WORDS:
            shorter = re.sub(r"(?<=[^-_. ])[-_. ]+[a-z]+$", "", shorter, flags=re.IGNORECASE)
        if shorter == stem:
            return stem
        stem = shorter


def _without(pattern: re.Pattern[str], stem: str, words: Collection[str]) -> str:
    shorter = pattern.sub("", stem)
    return shorter if _last_word(shorter) in words else stem


def _last_word(text: str) -> str:
    return re.split(r"[-_. \d]+", text.lower())[-1]


def _says_nothing(path: Path) -> bool:
    """Whether no word of a name tells one data set from another: it names a split or "data"; or a shard, by a number
    and words of the lists above."""
    name, stem = data_name(path), data_stem(path)
    idle = SHARD_WORDS | PLAIN_WORDS if stem != name else frozenset({"data"})
    words = [word for word in _BETWEEN_WORDS.split(stem.lower()) if word]
    return all(word in idle or word in SPLIT_WORDS for word in words)


def split_of(path: Path) -> str:
    """The split that a file's name states, then its folders' names; "train" if none does."""
    folders = (part for part in reversed(path.parent.parts) if "=" not in part or part.startswith("split="))
    for part in (data_stem(path), *folders):
        for word in _BETWEEN_WORDS.split(part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return "train"


def source_of(path: Path) -> str:
    """The source of a file's rows when nothing else states one: the file's stem, or its folder.

    "sets/algebra.jsonl" -> "algebra"; "sets/mathmix/train.jsonl", "mathmix/data/train-00000.parquet" and
    "mathmix/part-00000-1f2e-c000.jsonl" -> "mathmix", since a stem that only names a split or a shard does not tell
    one data set from another. Folders of the kind column=value are passed over: they state columns.
    """
    stem = data_stem(path)
    if not _says_nothing(path):
        return stem
    for folder in reversed(path.resolve().parent.parts):
        if "=" not in folder and folder.strip("/\\") and not _says_nothing(Path(folder)):
            return folder
    return stem or data_name(path)


def looks_local(path: str) -> bool:
    """Whether a path that does not exist was meant as a file or folder, and not as a hub id (owner/name)."""
    return (
        path.startswith(("/", "./", "../", "~", ".\\", "..\\"))
        or data_suffix(Path(path)) is not None
        or path.count("/") > 1
        or (path.count("/") == 1 and _beside_something_similar(Path(path)))
        or "\\" in path
        or path.endswith(("/", ".txt", ".zip", ".lz4", ".yaml", ".yml", *OPENERS))
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
