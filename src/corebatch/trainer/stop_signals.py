"""SIGTERM and SIGHUP: the step is finished, a checkpoint saved, and the process ends with 128 + the signal's number.

That is what batch systems send some seconds before they kill (Slurm, Kubernetes, spot instances), and what a terminal
sends when it closes. SIGINT stays as it is.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from transformers import TrainerCallback

from corebatch.distributed.ranks import Ranks

logger = logging.getLogger(__name__)

HANDLED = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(SystemExit):
    """A run ended at a signal; it can be gone on with. Uncaught, it ends the process with the code that shells know."""


class StopSignals(TrainerCallback):
    """Listens for signals while a Trainer trains, and stops it at the end of a step, all ranks at the same one.

    A second signal ends the process at once. A handler that was there before is called as well, when the signal comes,
    and is there again afterwards; a signal that is ignored (as SIGHUP under `nohup`) stays ignored.

    Args:
        ranks: all that train together.
        listens: whether this process installs handlers; Python can only in its main thread.
    """

    def __init__(self, ranks: Ranks, listens: bool = True) -> None:
        self._ranks = ranks
        self._listens = listens and threading.current_thread() is threading.main_thread()
        self._process = os.getpid()
        self._before: dict[int, Any] = {}
        self.received = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handlers are there within, and those from before again after it."""
        for number in HANDLED if self._listens else ():
            before = signal.getsignal(number)
            if before not in (None, signal.SIG_IGN):  # None: somebody's in C
                self._before[number] = before
                signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, before in self._before.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, before)

    def _handle(self, number: int, frame: Any) -> None:
        if self.received or os.getpid() != self._process:
            # A second one; or a loader's process, which a signal to all processes reaches too: it works on until the
            # step is done, and the next signal, which its parent sends, ends it.
            signal.signal(number, signal.SIG_DFL)
            if self.received:
                os.kill(os.getpid(), number)
            self.received = number
            return
        self.received = number
        name = signal.Signals(number).name
        with suppress(OSError):  # logging is not safe here
            os.write(2, f"{name}: this step will be finished and saved; a second signal ends at once.\n".encode())
        before = self._before.get(number)
        if callable(before) and not getattr(before, "__module__", "").startswith("transformers."):
            before(number, frame)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ranks agree, so that none waits for another that has stopped."""
        if self._ranks.largest(self.received):
            control.should_save = control.should_training_stop = True

    def leave(self, step: int, of: int, folder: str) -> None:
        """After training: ends the process where any rank had a signal.

        Raises:
            Stopped: with the exit code 128 + the signal's number.
        """
        number = self._ranks.largest(self.received)
        if not number:
            return
        if self._ranks.index == 0:
            name = signal.Signals(number).name
            done = f"all {of} steps are done" if step >= of else f"step {step} of {of} is finished"
            logger.warning(
                "%s: %s and saved in %s. Go on with resume_from_checkpoint=True, or "
                "`corebatch train CONFIG --resume_from_checkpoint true`.",
                *(name, done, folder),
            )
        raise Stopped(128 + number)
