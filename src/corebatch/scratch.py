"""Folders that processes use together, and temporary ones that go with their process.

Who uses a folder holds a shared lock on a file in it, which ends with the process however that dies. So a folder that
nobody uses can be told from one that somebody does: what a killed process left is removed at the next start, and
what a living one reads never is. Where there are no such locks (Windows) nothing of others is ever removed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "in-use.lock"
_held: dict[str, int] = {}  # folder -> the open file that carries the lock
_temporary: dict[str, int] = {}  # folder -> the process that made it


def scratch_folder(parent: Path, prefix: str) -> Path:
    """A new folder that goes when this process ends; first those go whose processes were killed."""
    for other in parent.glob(f"{prefix}*"):
        remove_unused(other)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    _temporary[str(folder)] = os.getpid()
    hold(folder)
    return folder


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[str]:
    """An empty folder in the system's temporary one, for the length of a block; after a kill it goes at the next."""
    folder = scratch_folder(Path(tempfile.gettempdir()), prefix)
    inside = folder / "files"
    inside.mkdir()
    try:
        yield str(inside)
    finally:
        discard(folder)


def hold(folder: Path) -> None:
    """Keeps the folder from being removed by `remove_unused` as long as this process lives. Raises OSError: it is gone,
    perhaps just now."""
    path = folder / LOCK
    if path.exists():
        handle = os.open(path, os.O_RDONLY)
        _share(handle)  # waits for whoever removes it
        if not path.exists():
            os.close(handle)
            raise FileNotFoundError(f"{folder} was removed")
    else:  # named when it is locked, so that nobody finds it unlocked
        new = folder / f"{LOCK}.{os.getpid()}"
        handle = os.open(new, os.O_WRONLY | os.O_CREAT, 0o644)
        _share(handle)
        new.rename(path)
    _let_go(folder)
    _held[str(folder)] = handle


def keep(folder: Path, name: Path) -> None:
    """A temporary folder becomes a lasting one of another name, which this process still uses."""
    folder.rename(name)
    _temporary.pop(str(folder), None)
    _held[str(name)] = _held.pop(str(folder))


def discard(folder: Path) -> None:
    """Removes a folder that this process alone uses."""
    _let_go(folder)
    _temporary.pop(str(folder), None)
    shutil.rmtree(folder, ignore_errors=True)


def remove_unused(folder: Path) -> bool:
    """Removes the folder if it is this user's and no process uses it; whether it did."""
    path = folder / LOCK
    try:
        if fcntl is None or folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return False
        with path.open("r+b") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for inside in folder.iterdir():
                if inside != path:  # the lock goes last: what a kill leaves can be told from what is in use
                    shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
            path.unlink()
            folder.rmdir()
    except OSError:
        return False
    return True


def in_use(folder: Path) -> bool:
    """Whether a process uses the folder."""
    try:
        with (folder / LOCK).open("rb") as handle:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _share(handle: int) -> None:
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_SH)


def _let_go(folder: Path) -> None:
    handle = _held.pop(str(folder), None)
    if handle is not None:
        os.close(handle)


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker that ends must leave its parent's rows alone
        shutil.rmtree(folder, ignore_errors=True)


@atexit.register
def _remove_all() -> None:
    for folder, owner in _temporary.items():
        _remove(folder, owner)
