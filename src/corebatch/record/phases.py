"""The phases of one step: how long each took and how much memory it held, without stopping the device.

    load, score, exchange (communication between ranks), select, repack, train, optimizer
    track, at steps whose gradient error is measured

A GPU runs behind the host, so its time is taken by events put on its stream at the boundaries: no boundary waits, and
the milliseconds are known once the device has passed the events.
"""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch

MB = 2**20


class HostClock:
    """Marks moments, tells the milliseconds between two, and watches the memory: wall clock and the process's resident
    set, which has no peak by phase: it is read where the phase ends."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def mark(self) -> Any:
        """This moment, in the order of the device's work. Waits for nothing."""
        return time.perf_counter()

    def passed(self, mark: Any) -> bool:
        """Whether the device has come to the mark. Waits for nothing."""
        return True

    def wait(self, mark: Any) -> None:
        """Returns once the device has come to the mark."""

    def ms(self, first: Any, last: Any) -> float:
        """Milliseconds between two marks that the device has passed."""
        return float(1000 * (last - first))

    def reset_peak(self) -> None:
        """Begins to watch the memory."""

    def peak_mb(self) -> float:
        """The memory held since `reset_peak`, in MB (2^20 bytes)."""
        return float(self._process.memory_info().rss / MB)


class CudaClock(HostClock):
    """Events on the current CUDA stream, and the peak of PyTorch's allocator.

    Nothing here but `wait` synchronises. The allocator's figures are the host's own: memory counts in the phase that
    asked for it, whenever the device gets there.

    Args:
        event: makes an event; as `torch.cuda.Event(enable_timing=True)`.
        memory: has `reset_peak_memory_stats()` and `max_memory_allocated()`, as `torch.cuda`.
    """

    def __init__(self, event: Any = None, memory: Any = torch.cuda) -> None:
        self._event = event if event is not None else torch.cuda.Event
        self._memory = memory

    def mark(self) -> Any:
        event = self._event(enable_timing=True)
        event.record()
        return event

    def passed(self, mark: Any) -> bool:
        return bool(mark.query())

    def wait(self, mark: Any) -> None:
        mark.synchronize()

    def ms(self, first: Any, last: Any) -> float:
        return float(first.elapsed_time(last))

    def reset_peak(self) -> None:
        self._memory.reset_peak_memory_stats()

    def peak_mb(self) -> float:
        return float(self._memory.max_memory_allocated() / MB)


def clock_for(device: torch.device | None = None) -> HostClock:
    """The clock of a device; by default of the GPU where there is one."""
    gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return CudaClock() if gpu else HostClock()


class Phases:
    """Milliseconds and peak memory of the phases of one step. A phase that ends twice adds up.

    On a GPU a phase lasts from where the device passes its first boundary to where it passes its last: host work that
    hides behind the device costs nothing, and a device that waits for the host counts it. So the phases of a step add
    up to its wall-clock time either way.

    Attributes:
        ms: by phase. On a GPU without those that the device has not finished: see `resolve`.
        memory_mb: by phase, the most in any of its parts, in MB (2^20 bytes): the allocator's peak on a GPU, the
            resident set at the end of the phase on CPU.
    """

    def __init__(self, clock: HostClock | None = None) -> None:
        self.ms: dict[str, float] = {}
        self.memory_mb: dict[str, float] = {}
        self._clock = clock if clock is not None else clock_for()
        self._open: list[tuple[str, Any, Any]] = []
        self.start()

    def start(self) -> None:
        """Starts the next phase here; the time since the last boundary belongs to none."""
        self._begin(self._clock.mark())

    def end(self, phase: str) -> None:
        """Counts the time since the last boundary to `phase`, and starts the next one."""
        mark = self._clock.mark()
        self._open.append((phase, self._since, mark))
        self.memory_mb[phase] = max(self.memory_mb.get(phase, 0.0), self._clock.peak_mb())
        self._begin(mark)
        self.resolve()

    @property
    def resolved(self) -> bool:
        """Whether `ms` holds all that ended, as far as `resolve` was asked."""
        return not self._open

    def resolve(self, wait: bool = False) -> bool:
        """Moves the phases that the device has finished into `ms`.

        Args:
            wait: for those that it has not.

        Returns:
            Whether `ms` holds all that ended.

        Raises:
            RuntimeError: the device failed before it came to an event.
        """
        while self._open:
            phase, first, last = self._open[0]
            if wait:
                self._clock.wait(last)
            elif not self._clock.passed(last):
                return False
            self.ms[phase] = self.ms.get(phase, 0.0) + self._clock.ms(first, last)
            del self._open[0]
        return True

    def _begin(self, mark: Any) -> None:
        self._since = mark
        self._clock.reset_peak()
