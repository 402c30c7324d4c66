"""One process trains in a folder: it holds a lock there until it ends, however it ends.

The lock is the operating system's (`flock`; on Windows `LockFileEx`), which goes with the process that holds it, so
that a killed run blocks nobody. On network file systems it holds as far as those pass locks on: NFS from version 4,
Lustre mounted with `flock`, and most others between processes of one machine alone. Where a file system refuses locks
a warning says so. Beside the lock lies who holds it, for the message to the second.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from corebatch.distributed.ranks import Ranks
from corebatch.errors import ConfigError
from corebatch.record.saving import check_writable

logger = logging.getLogger(__name__)

LOCK, OWNER = "_corebatch.lock", "_corebatch.owner.json"
"""Pushing to a hub leaves names with an underscore out."""
ORPHANS = 15.0
"""Seconds that a killed owner's loader processes, which may still hold its lock, are given to end."""
_held: Counter[Path] = Counter()


@contextmanager
def owned(folder: Path, *, again: bool = True) -> Iterator[None]:
    """Holds a folder, which is made if need be, for this process. `again`: whether a process that holds it may hold it
    once more. Raises CheckpointError: the folder cannot be written to; ConfigError: another process holds it; the
    message says which, where and since when."""
    made = not folder.exists()
    check_writable(folder)
    place = folder.resolve()
    if _held[place]:
        if not again:
            raise ConfigError(_words(place, _owner(place)))
        _held[place] += 1
        try:
            yield
        finally:
            _held[place] -= 1
        return
    lock = _acquire(place)
    _held[place] += 1
    try:
        _write_owner(place)
        yield
    finally:
        _held[place] -= 1
        _let_go(place, lock)
        if made:
            with contextlib.suppress(OSError):  # nothing was begun in it, or it is not empty
                place.rmdir()


@contextmanager
def owned_by_first(args: Any, ranks: Ranks) -> Iterator[None]:
    """Among ranks the one that writes holds `args.output_dir` (each machine's, with `save_on_each_node`), and all
    raise if it cannot."""
    with contextlib.ExitStack() as held:
        with ranks.together("Locking output_dir"):
            if args.should_save:
                held.enter_context(owned(Path(args.output_dir)))
        yield


def check_unowned(folder: Path) -> None:
    """Raises ConfigError if another process holds the folder; a folder without a lock is not touched."""
    if (folder / LOCK).exists():
        with owned(folder):
            pass


def _acquire(place: Path) -> Any:
    until = None
    while True:
        lock = FileLock(place / LOCK, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            found = _owner(place)
            if until is None and _is_gone(found):
                until = time.monotonic() + ORPHANS
            if until is None or time.monotonic() > until:
                raise ConfigError(_words(place, found)) from None
            time.sleep(0.2)
            continue
        except (NotImplementedError, OSError) as error:
            logger.warning(
                "%s cannot be locked (%s: %s): nothing keeps a second run out of it.",
                *(place, type(error).__name__, error),
            )
            return None
        if (place / LOCK).exists():
            return lock
        lock.release()  # of a file that its last owner took away meanwhile: others would make another


def _let_go(place: Path, lock: Any) -> None:
    for name in (OWNER, LOCK):
        with contextlib.suppress(OSError):  # Windows deletes no open file: it stays, and blocks nobody
            (place / name).unlink(missing_ok=True)
    if lock is not None:
        lock.release()


def _write_owner(place: Path) -> None:
    own = psutil.Process()
    about = {"host": socket.gethostname(), "pid": own.pid, "started": own.create_time()}
    try:
        (place / OWNER).write_text(json.dumps(about), encoding="utf-8")
    except OSError:  # a full disk: the lock holds without it
        (place / OWNER).unlink(missing_ok=True)


def _owner(place: Path) -> dict[str, Any]:
    try:
        found = json.loads((place / OWNER).read_text(encoding="utf-8"))
        return {"host": str(found["host"]), "pid": int(found["pid"]), "started": float(found["started"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the owner ran on this machine and does not any more."""
    if not owner or owner["host"] != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) > 1.0
    except psutil.NoSuchProcess:
        return True


def _words(place: Path, owner: dict[str, Any]) -> str:
    who = "another process"
    if owner:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner["started"]))
        who = f"another process: {owner['pid']} on {owner['host']}, started {since}"
    return (
        f"output_dir: {place} belongs to {who}, still at work there. Expected one run in a folder: wait for it, end "
        "it, or choose another folder."
    )
