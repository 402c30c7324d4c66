"""Worker processes: each holds the data, and runs one job at a time."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from multiprocessing import get_context, parent_process
from typing import Any

import datasets
import psutil
import torch
from transformers.utils import logging as transformers_logging

from corebatch.bench.runs.from_config import Parts
from corebatch.bench.runs.jobs import Each, Job, Workplace, failure
from corebatch.config.building import skeleton
from corebatch.config.quiet import hush
from corebatch.errors import ConfigError, CorebatchError

logger = logging.getLogger(__name__)


class Processes:
    """Worker processes for the jobs of a comparison; they start when there is a job, and last until the `with` of this
    ends. Raises ConfigError: `devices` names a GPU that is not there."""

    def __init__(self, parts: Parts) -> None:
        own = parts.own
        found = 0 if parts.settings.training.get("use_cpu") else torch.cuda.device_count()
        gpus = list(own.devices) if own.devices is not None else list(range(found))
        if any(not isinstance(gpu, int) or not 0 <= gpu < found for gpu in gpus):
            raise ConfigError(f"compare.devices should be indices of the {found} GPUs here. Found {gpus}.")
        count = own.processes or len(gpus) or on_cores(parts)
        self._parts = parts
        self.count = count
        self._gpus = [gpus[n % len(gpus)] if gpus else None for n in range(count)]
        self._threads = own.threads or max(1, (os.cpu_count() or 1) // count)
        self._held, self._workers = ExitStack(), list[_Worker]()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.clear()
        self._held.close()

    def _started(self, count: int) -> list[_Worker]:
        """The first `count` processes, those that were there before among them."""
        for gpu in self._gpus[len(self._workers) : count]:
            self._workers.append(self._held.enter_context(closing(_Worker(self._parts, gpu, self._threads))))
        return self._workers[:count]

    @contextmanager
    def one(self) -> Iterator[Callable[[Job], dict[str, Any]]]:
        """A single process alone, for timing: `run(job) -> result`."""
        (worker,) = self._started(1)

        def run(job: Job) -> dict[str, Any]:
            found = _result(worker.submit(job))
            if isinstance(found, ProcessLostError):
                raise ProcessLostError(f"The process of {job.title} ended before its run. {KEPT}")
            if isinstance(found, Exception):
                raise found
            return found

        yield run

    @contextmanager
    def all(self) -> Iterator[Each]:
        """All processes. A job whose process is gone begins anew in another one, once; the others go on, and a
        ProcessLostError comes after them where that one went too."""
        workers = self._started(len(self._gpus))

        def each(jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
            waiting, idle, lost = deque(jobs), list(workers), list[Job]()
            busy: dict[Future[Any], tuple[_Worker, Job]] = {}
            while waiting or busy:
                while waiting and idle:
                    worker, job = idle.pop(), waiting.popleft()
                    busy[worker.submit(job)] = worker, job
                for ended in wait(busy, return_when=FIRST_COMPLETED).done:
                    worker, job = busy.pop(ended)
                    idle.append(worker)
                    found = _result(ended)
                    if not isinstance(found, ProcessLostError):
                        yield job, failure(found) if isinstance(found, Exception) else found
                        continue
                    if not any(job is each for each in lost):
                        logger.warning("%s: its process ended (killed, or out of memory). It begins anew.", job.title)
                        waiting.appendleft(job)
                    lost.append(job)
            twice = [job.title for number, job in enumerate(lost) if any(job is each for each in lost[:number])]
            if twice:
                raise ProcessLostError(f"The processes of {'; '.join(twice)} ended twice before their runs. {KEPT}")

        yield each


SMALL = 200_000_000
"""Parameters up to which runs on a CPU go side by side, on a thread each."""
_PROCESS, _PARAMETER = 1 << 30, 24
"""Bytes of a worker process before it has a model (libraries, data), and of a parameter with gradient, moments and
activations."""


def on_cores(parts: Parts) -> int:
    """How many processes a comparison has on a CPU: a small model is trained fastest by a run on each core, as many as
    memory holds twice over and as there are runs; a larger one alone, on all of them."""
    own = parts.own
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = min(cores // (own.threads or 1), len(parts.arms) * len(own.seeds))
    if most < 2:
        return 1
    parameters = sum(each.numel() for each in skeleton(parts.settings).parameters())
    if parameters > SMALL:
        return 1
    held = _PROCESS + _PARAMETER * parameters
    return max(1, min(most, int(psutil.virtual_memory().available) // (2 * held)))


class ProcessLostError(CorebatchError):
    """A worker process is gone."""


KEPT = "It was killed, or out of memory. What is finished is kept: run the same command again to go on."


class _Worker:
    """One process, which starts with its first job, and again where it is gone."""

    def __init__(self, parts: Parts, gpu: int | None, threads: int) -> None:
        self._about, self._gpu = (parts, "cpu" if gpu is None else "cuda:0", threads), gpu
        self._pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin, initargs=self._about)

    def submit(self, job: Job) -> Future[Any]:
        with _one_gpu_seen(self._gpu):
            try:
                return self._pool.submit(_run, job)
            except BrokenProcessPool:
                self.close()
                self._pool = self._new()
                return self._pool.submit(_run, job)

    def close(self) -> None:
        self._pool.shutdown()


def _result(job: Future[Any]) -> Any:
    """What a job found, or the Exception that it raised: a ProcessLostError where its process is gone."""
    try:
        return job.result()
    except BrokenProcessPool:
        return ProcessLostError()


@contextmanager
def _one_gpu_seen(gpu: int | None) -> Iterator[None]:
    """Processes that start within see this GPU alone: the Trainer would take all."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = before.split(",")[gpu] if before else str(gpu)
    try:
        yield
    finally:
        if gpu is not None:
            os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


_here: Workplace
"""Of a worker process."""


def _begin(parts: Parts, device: str, threads: int) -> None:
    """The beginning of a worker process."""
    global _here
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt ends it at once, and its parent says so
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if device == "cpu":
        torch.set_num_threads(threads)
    hush()
    # The comparison's own lines are all that a reader wants of so many runs.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    _here = Workplace(parts, device)
    gc.collect()
    gc.freeze()  # every training begins with a full collection, which need not walk through what was imported


def _run(job: Job) -> Any:
    try:
        return _here.run(job)
    except Exception as error:
        return _portable(error)


def _end_with_parent() -> None:
    """A comparison that is killed takes its processes with it, also in the middle of a run."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error, or where it cannot go to another process, one that names it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
