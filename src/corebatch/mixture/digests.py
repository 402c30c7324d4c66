"""What tokenised rows depend on, as one key: files, tokenizer, settings and our own code."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from corebatch.files import write_text
from corebatch.mixture.reading import read_parts
from corebatch.mixture.rows import RowReader
from corebatch.mixture.spec import DatasetSpec

LIBRARIES = ("tokenizers", "transformers", "trl", "jinja2", "datasets", "pyarrow", "sentencepiece", "tiktoken")
SETTLED = 2 * 10**9  # ns: a younger file may change again without a change of its times
MOST_MEMOS = 10_000
PASSING = frozenset(
    ("deprecation_warnings", "verbose", "name_or_path", "init_inputs", "_in_target_context_manager", "_tokenizer")
)
"""Attributes of tokenizers that say nothing of how they tokenise, or that are told from their content."""

Stamp = tuple[int, ...]


class Memo:
    """What files held when they were read last, by path, inode, size and times, so that large ones are not read at
    every start.

    A file is believed to be unchanged only if it had been still for two seconds when it was read; and the time of the
    last change of its inode, which no program can set back, is compared as well as that of its content. `folder`: of
    the notes; None: none are kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.seen: dict[Path, Stamp] = {}

    def digest(self, file: Path) -> str:
        """SHA-256 of the file's bytes. Raises OSError: it cannot be read."""
        file = Path(os.path.realpath(file))
        stamp = self.seen[file] = stamp_of(file)
        note = self.folder and self.folder / f"{hashlib.sha256(os.fsencode(file)).hexdigest()[:32]}.json"
        if note is not None:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                known = json.loads(note.read_text(encoding="utf-8"))
                if known["stamp"] == list(stamp):
                    return str(known["digest"])
        begun = time.time_ns()
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if note is not None and stamp_of(file) == stamp and max(stamp[-2:]) < begun - SETTLED:
            self._keep(note, {"stamp": stamp, "digest": digest})
        return digest

    def unchanged(self) -> bool:
        """Whether all files are as they were when they were asked for."""
        try:
            return all(stamp_of(file) == stamp for file, stamp in self.seen.items())
        except OSError:
            return False

    def _keep(self, note: Path, content: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            others = list(note.parent.glob("*.json"))
            if len(others) >= MOST_MEMOS:
                for old in sorted(others, key=lambda path: path.stat().st_mtime)[: MOST_MEMOS // 2]:
                    old.unlink(missing_ok=True)
            write_text(note, json.dumps(content))


def stamp_of(file: Path) -> Stamp:
    """Device, inode, size, and the times (ns) of the last changes of content and inode."""
    state = file.stat()
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def rows_key(
    specs: Sequence[DatasetSpec],
    source_column: str,
    options: Any,
    tokenizer: Any,
    memo: Memo,
    weight_column: str | None = None,
) -> str | None:
    """The key of the rows that `load_mixture` makes before weights act; None if something cannot be told.

    Args:
        specs, source_column, weight_column, tokenizer: as `load_mixture`.
        options: TokeniseOptions; all of its fields count, as all of a spec's but those that say how often.

    Raises:
        DataError: as `read_parts`.
    """
    parts = [[_part_of(part, memo) for part in read_parts(spec)] for spec in specs]
    told = tokenizer_digest(tokenizer)
    if told is None or any(part is None for own in parts for part in own):
        return None
    content = {
        "code": _code(),
        "libraries": _versions(),
        "tokenizer": told,
        "options": dataclasses.asdict(options),
        "source_column": source_column,
        "weight_column": weight_column,
        "specs": [_read_alike(spec) for spec in specs],
        "parts": parts,
    }
    if "strftime_now" in json.dumps(_plain([getattr(tokenizer, "chat_template", None), content["options"]])):
        content["today"] = datetime.date.today().isoformat()  # the template writes it into every row
    return _sha(content)[:40]


UNREAD = ("weight", "repeat", "share", "replay")
"""Keys of a spec that leave its rows as they are."""


def _read_alike(spec: DatasetSpec) -> dict[str, Any]:
    """A spec without what says how often its rows count."""
    return {key: value for key, value in dataclasses.asdict(spec).items() if key not in UNREAD}


def tokenizer_digest(tokenizer: Any) -> str | None:
    """SHA-256 of everything that a tokenizer is made of: vocabulary, rules, special tokens, templates, settings, and
    the code of a class of one's own. None if it cannot be told."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        rules = json.loads(backend.to_str())
        for passing in ("truncation", "padding"):  # as the last call left them; ours asks for neither
            rules.pop(passing, None)
    else:
        rules = _saved(tokenizer)
        if rules is None:
            return None
    own = type(tokenizer)
    attributes = {name: value for name, value in vars(tokenizer).items() if name not in PASSING}
    if isinstance(settings := attributes.get("init_kwargs"), dict):
        attributes["init_kwargs"] = {
            name: value for name, value in settings.items() if name not in PASSING and not name.endswith("_file")
        }
    return _sha([f"{own.__module__}.{own.__qualname__}", _class_code(own), rules, attributes, len(tokenizer)])


def _saved(tokenizer: Any) -> Any:
    """The files that a tokenizer in Python saves of itself, by name; None if it cannot be saved."""
    with tempfile.TemporaryDirectory(prefix="corebatch-tokenizer-") as folder:
        try:
            tokenizer.save_pretrained(folder)
        except Exception:  # whatever a class of somebody's own raises: its rows are made anew at every start
            return None
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in Path(folder).iterdir()}


def _part_of(part: Any, memo: Memo) -> list[Any] | None:
    """All that says which rows a part has; None if neither files nor the reader itself tell."""
    reader: RowReader = part.reader
    if not reader.files and reader.identity is None:
        return None
    files = [(file.name, memo.digest(file)) for file in reader.files]
    return [type(reader).__name__, reader.label, reader.identity, files, part.default_source, part.start, part.stop]


def _class_code(own: type) -> str | None:
    """A digest of the module of a class that no library brings."""
    if own.__module__.split(".")[0] in ("transformers", "tokenizers"):
        return None
    file = getattr(sys.modules.get(own.__module__), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


@cache
def _code() -> str:
    """A digest of this room's own code: rows made by other code are not taken for ours."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return _sha([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """The value as JSON can write it, the same in every process."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    return value if value is None or isinstance(value, str | int | float) else repr(value)
