"""Where each rank is, so that a rank that waits in vain can say for whom.

Collectives fail without a name: "connection closed", "timed out", or on a GPU not at all until a watchdog ends the
process. Each rank writes its place (step and phase) into the process group's key-value store; a rank whose collective
fails, or that waits long, reads there who did not come.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from corebatch.errors import RankError

logger = logging.getLogger(__name__)

GRACE = 8.0
"""Seconds that a rank whose collective failed gives the others to say the same of theirs."""
WATCHED = 0.8
"""The part of the process group's timeout after which a rank that has not moved on says so in its log."""

_SIGNS = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "peer")


@dataclass(frozen=True, slots=True)
class Place:
    """What a rank said last.

    Attributes:
        count: how many places it has been at.
        step: of the optimizer, from 1.
        phase: what it went on to do.
        time: when, in seconds of the epoch, by its own clock.
        failure: what ended its run, or None.
    """

    count: int
    step: int
    phase: str
    time: float
    failure: str | None = None

    def __str__(self) -> str:
        return f"step {self.step}, {self.phase}, {max(0.0, time.time() - self.time):.0f} s ago"


class Presence:
    """This rank's place, and those of the others.

    Args:
        index: this rank's number.
        count: how many ranks there are; with one nothing is written.
        timeout: of the process group's collectives, in seconds.
        store: where places are written; the default process group's.
    """

    def __init__(self, index: int = 0, count: int = 1, timeout: float = 1800.0, store: Any = None) -> None:
        self.index, self.count, self.timeout = index, count, timeout
        self._store = None if count == 1 else _default_store() if store is None else store
        self._place = Place(0, 0, "start", time.time())
        self._told = 0
        self._stop = threading.Event()

    def at(self, step: int, phase: str) -> None:
        """This rank goes on to a phase of a step. One short message to the store."""
        self._place = Place(self._place.count + 1, step, phase, time.time())
        self._write()

    def watch(self) -> None:
        """Starts to look, from a thread, whether this rank moves on; says in the log for whom it waits if not."""
        if self._store is not None:
            self._stop.clear()
            every = max(0.05, self.timeout / 20)
            threading.Thread(target=_watch, args=(weakref.ref(self), self._stop, every), daemon=True).start()

    def close(self) -> None:
        """Ends the watching."""
        self._stop.set()

    def explain(self, error: Exception) -> Exception:
        """What a run that ended with `error` should raise.

        Returns:
            The error itself if it is this rank's own (the others are told), else a RankError that names the ranks
            which did not come to the collective that failed.
        """
        if self._store is None or isinstance(error, RankError):
            return error
        ours = not _of_a_collective(error)
        failure = f"{type(error).__name__}: {error}".strip().split("\n")[0][:500]
        self._place = Place(self._place.count, self._place.step, self._place.phase, time.time(), failure)
        self._write()
        if ours:
            return error
        where = f"At {self._place.phase} of step {self._place.step} rank {self.index} could not go on"
        try:
            missing = self._missing(GRACE)
        except Exception as unreachable:
            return RankError(
                f"{where} ({failure}), and the store of the process group, which rank 0's process or the launcher "
                f"keeps, cannot be reached either ({type(unreachable).__name__}): rank 0 is gone."
            )
        if not missing:
            return RankError(f"{where}, and every other rank says the same: the network between them. Found {failure}")
        return RankError(f"{where}, for want of {'; '.join(missing)}. Found {failure}")

    def behind(self) -> list[str]:
        """The ranks that have been at fewer places than this one, in words."""
        places = self._places()
        return [
            f"rank {rank} (last seen at {place})" if place else f"rank {rank} (never seen)"
            for rank, place in enumerate(places)
            if rank != self.index and (place is None or place.count < self._place.count)
        ]

    def _missing(self, grace: float) -> list[str]:
        """Ranks with a failure of their own, or that neither fail nor move while this one's collective is broken."""
        until = time.monotonic() + grace
        while True:
            others = {rank: place for rank, place in enumerate(self._places()) if rank != self.index}
            own = [
                f"rank {rank}, which failed at step {place.step}, {place.phase}: {place.failure}"
                for rank, place in others.items()
                if place is not None and place.failure is not None and not _sounds_like_a_collective(place.failure)
            ]
            silent = {rank: place for rank, place in others.items() if place is None or place.failure is None}
            if own or not silent or time.monotonic() > until:
                # Those that have come less far are the cause; without them, whoever says nothing at all.
                late = {r: p for r, p in silent.items() if p is None or p.count < self._place.count} or silent
                return own or [f"rank {r}, " + (f"last seen at {p}" if p else "never seen") for r, p in late.items()]
            time.sleep(0.1)

    def _places(self) -> list[Place | None]:
        assert self._store is not None
        keys = [str(rank) for rank in range(self.count)]
        return [Place(**json.loads(self._store.get(key))) if self._store.check([key]) else None for key in keys]

    def _write(self) -> None:
        if self._store is None:
            return
        place = self._place
        text = {"count": place.count, "step": place.step, "phase": place.phase, "time": place.time}
        try:
            self._store.set(str(self.index), json.dumps(text | {"failure": place.failure}))
        except Exception as error:  # of the store: the next collective fails by itself if it matters
            logger.debug("This rank's place could not be written: %s", error)

    def _look(self) -> None:
        """Says once for a place that this rank has been there for long, and who is behind it."""
        place, waited = self._place, time.time() - self._place.time
        if waited < WATCHED * self.timeout or self._told == place.count or place.count == 0:
            return
        self._told = place.count
        try:
            behind = self.behind()
        except Exception as error:
            behind = [f"nobody knows whom: the store cannot be read ({type(error).__name__})"]
        text = "Rank %d has been at %s of step %d for %.0f s, and the process group's timeout is %.0f s. %s."
        found = f"It waits for {'; '.join(behind)}" if behind else "So has every other: evaluation, a save, or gone"
        level = logging.ERROR if behind else logging.WARNING
        logger.log(level, text, self.index, place.phase, place.step, waited, self.timeout, found)


def _watch(presence: weakref.ref[Presence], stop: threading.Event, every: float) -> None:
    while not stop.wait(every):
        watched = presence()
        if watched is None:
            return
        watched._look()
        del watched


_made = itertools.count()  # runs of one process do not read each other's places


def _default_store() -> Any:
    if not (dist.is_available() and dist.is_initialized()):
        return None
    store = dist.distributed_c10d._get_default_store()
    store = store.clone() if hasattr(store, "clone") else store  # a connection of its own: training's may be waiting
    return dist.distributed_c10d.PrefixStore(f"corebatch/{next(_made)}", store)


def _of_a_collective(error: Exception) -> bool:
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and _sounds_like_a_collective(str(error))


def _sounds_like_a_collective(text: str) -> bool:
    return any(sign in text.lower() for sign in _SIGNS)
