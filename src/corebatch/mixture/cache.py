"""Tokenised rows are kept: made once for all processes and starts that ask for the same, in a bounded folder.

    FOLDER/rows/KEY/          the files that a maker wrote, entry.json (sizes and a digest of itself), in-use.lock
    FOLDER/rows/building-X/   an entry that is being made; moved to its name when it is whole
    FOLDER/digests/           what files held when they were read last; see `digests`

The first that asks for a key makes it under a lock, all others wait for it. Errors are not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from corebatch.errors import ConfigError
from corebatch.scratch import LOCK, discard, hold, in_use, keep, remove_unused, scratch_folder

logger = logging.getLogger(__name__)

FOLDER_VARIABLE, BOUND_VARIABLE = "COREBATCH_CACHE", "COREBATCH_CACHE_GB"
BOUND = 20.0  # GB of 10^9 bytes
BUILDING = "building-"
TEMPORARY = "corebatch-mixture-"
RECORD = "entry.json"

Make = Callable[[Path], bool]
"""Writes files into a folder, then `write_record`; whether they may be kept."""

_said: set[str] = set()


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One kept set of rows.

    Attributes:
        folder: its name is the key.
        size: bytes of all files in it.
        used: when a process last began to use it, seconds since 1970.
    """

    folder: Path
    size: int
    used: float

    @property
    def busy(self) -> bool:
        """Whether a process uses it."""
        return in_use(self.folder)


class RowCache:
    """The kept rows below a folder. `folder`: None: what COREBATCH_CACHE names, else ~/.cache/corebatch. Raises
    ConfigError: COREBATCH_CACHE_GB is no number of at least 0."""

    def __init__(self, folder: str | Path | None = None) -> None:
        chosen = folder or os.environ.get(FOLDER_VARIABLE) or "~/.cache/corebatch"
        self.folder = Path(chosen).expanduser()
        self.rows = self.folder / "rows"
        self.bound = _bound()

    def folder_for(self, key: str, make: Make) -> Path:
        """A folder with what `make` wrote, now or when this key was asked for first. It stays while this process
        lives."""
        folder = self.rows / key
        lock = self._lock(key)
        try:
            if self._use(folder):
                return folder
            return temporary_rows(make) if lock is None else self._make(folder, make)
        finally:
            if lock is not None:
                lock.release()

    def entries(self) -> list[CacheEntry]:
        """All kept rows, and what is left of removed ones, those first that were used longest ago."""
        found = []
        for folder in self.rows.glob("*"):
            with contextlib.suppress(OSError):
                if folder.is_dir() and not folder.name.startswith(BUILDING):
                    found.append(CacheEntry(folder, _size(folder), (folder / LOCK).stat().st_mtime))
        return sorted(found, key=lambda entry: entry.used)

    def clear(self, keys: Sequence[str] = ()) -> tuple[list[CacheEntry], list[CacheEntry]]:
        """Removes what no process uses: (removed, left because they are used). `keys`: beginnings of keys; none:
        everything, with what was noted of files. Raises ConfigError: no kept rows have such a key."""
        entries = self.entries()
        for key in keys:
            if not key or not any(entry.folder.name.startswith(key) for entry in entries):
                raise ConfigError(f"No kept rows in {self.folder} have a key that begins with {key!r}.")
        removed: list[CacheEntry] = []
        left: list[CacheEntry] = []
        for entry in entries:
            if not keys or entry.folder.name.startswith(tuple(keys)):
                (removed if remove_unused(entry.folder) else left).append(entry)
        if not keys:
            for folder in self.rows.glob(f"{BUILDING}*"):
                remove_unused(folder)
            for file in (*self.folder.glob("digests/*.json"), *self.rows.glob("*.lock")):
                if not (self.rows / file.stem).exists():
                    file.unlink(missing_ok=True)
        return removed, left

    def _lock(self, key: str) -> FileLock | None:
        """The key's lock, held; None where the folder cannot be written."""
        try:
            self.rows.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.rows / f"{key}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                logger.info("another process tokenises the same rows: waiting for it")
                lock.acquire()
        except (OSError, NotImplementedError) as error:
            _say_once(f"Tokenised rows are not kept, since {self.folder} cannot be written: {error}.")
            return None
        return lock

    def _use(self, folder: Path) -> bool:
        """Whether there is a sound entry, which from now on is in use."""
        try:
            hold(folder)
            reason = _damage(folder)
        except OSError as error:
            if not folder.exists():
                return False
            reason = str(error)
        if reason is None:
            with contextlib.suppress(OSError):
                os.utime(folder / LOCK)
            return True
        logger.warning("the kept rows in %s are damaged (%s): they are made anew", folder, reason)
        discard(folder)
        return False

    def _make(self, folder: Path, make: Make) -> Path:
        building = scratch_folder(self.rows, BUILDING)
        may_be_kept = _made(make, building)
        size = _size(building)
        if not may_be_kept or size > self.bound:
            return building  # goes with this process
        _to_disk(building)
        self._make_room(size)
        try:
            keep(building, folder)
        except OSError as error:  # what lies there is damaged and cannot be removed
            _say_once(f"Tokenised rows are not kept: {error}.")
            return building
        return folder

    def _make_room(self, size: int) -> None:
        entries = self.entries()
        total = size + sum(entry.size for entry in entries)
        for entry in entries:
            if total <= self.bound:
                return
            if remove_unused(entry.folder):
                total -= entry.size
        if total > self.bound:
            logger.info("the kept rows in %s are all in use, and more than %s GB", self.rows, self.bound / 1e9)


def temporary_rows(make: Make, parent: str | Path | None = None) -> Path:
    """A folder with what `make` wrote that goes with this process, in `parent` or the system's temporary folder."""
    folder = Path(parent or tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    made = scratch_folder(folder, TEMPORARY)
    _made(make, made)
    return made


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes what is to be known of a folder's files, when they are all there."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if not path.name.startswith(LOCK)}
    record = {**record, "sizes": sizes, "made": time.time()}
    content = {"record": record, "digest": _digest(record)}
    (folder / RECORD).write_text(json.dumps(content), encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """What was to be known of an entry's files. Raises OSError, ValueError, KeyError, TypeError: there is none, or it
    is damaged."""
    content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if content["digest"] != _digest(content["record"]):
        raise ValueError("its record is another than was written")
    record: dict[str, Any] = content["record"]
    return record


def _made(make: Make, folder: Path) -> bool:
    try:
        return make(folder)
    except BaseException:
        discard(folder)
        raise


def _to_disk(folder: Path) -> None:
    """Before the folder gets its name: a power failure must not leave a name without content."""
    for path in folder.iterdir():
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())


def _damage(folder: Path) -> str | None:
    try:
        record = read_record(folder)
        for name, size in record["sizes"].items():
            if (found := (folder / name).stat().st_size) != size:
                return f"{name} should have {size:,} bytes. Found {found:,}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return str(error) or type(error).__name__
    return None


def _digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _bound() -> float:
    text = os.environ.get(BOUND_VARIABLE, str(BOUND))
    try:
        bound = float(text)
    except ValueError:
        bound = -1.0
    if not 0 <= bound < float("inf"):
        raise ConfigError(f"{BOUND_VARIABLE} should be a number of gigabytes, at least 0. Found {text!r}.")
    return bound * 1e9


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.warning(message)
