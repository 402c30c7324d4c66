"""Work on a stream by several processes, with the results in the order of one."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from corebatch.errors import DataError
from corebatch.options import check_count

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 4  # items for each process that wait or are worked on

_function: Callable[[Any], Any] | None = None


def check_processes(given: int | None) -> int:
    """The number of processes that `dataset_num_proc` asks for; None: one. Raises ConfigError: it is no integer of at
    least 1."""
    if given is not None:
        check_count("`dataset_num_proc`", given, more=", or none")
    return given or 1


def in_order(function: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result]:
    """`map(function, items)`, with `processes` workers if there are more than one. Items and results are pickled, the
    function is not. Raises DataError: a worker died; Exception: what `map` would raise, at the same place."""
    if processes <= 1:
        yield from map(function, items)
        return
    pool = _pool(function, processes)
    waiting: deque[Future[Result]] = deque()
    try:
        yield from _through(pool, items, waiting, processes * AHEAD)
    except BrokenProcessPool as error:
        raise DataError(
            f"One of the {processes} processes that tokenise died, perhaps for want of memory. A smaller "
            "`dataset_num_proc` needs less."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _through(
    pool: ProcessPoolExecutor, items: Iterable[Item], waiting: deque[Future[Any]], ahead: int
) -> Iterator[Any]:
    iterator = iter(items)
    failed: Exception | None = None
    while True:
        while len(waiting) < ahead and failed is None:
            try:
                waiting.append(pool.submit(_work, next(iterator)))
            except StopIteration:
                break
            except Exception as error:  # raised once the items before it are done, which may fail themselves
                failed = error
        if not waiting:
            break
        yield waiting.popleft().result()
    if failed is not None:
        raise failed


def _pool(function: Callable[[Any], Any], processes: int) -> ProcessPoolExecutor:
    """Forked where the system can, so that a script needs no guard and a tokenizer no pickling."""
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context(method), initializer=_begin, initargs=(function, os.getpid())
    )
    with warnings.catch_warnings():
        # Python 3.12 warns of forks beside threads; the workers use none of what the threads may hold
        warnings.simplefilter("ignore", DeprecationWarning)
        pool.submit(os.getpid).result()
    return pool


def _begin(function: Callable[[Any], Any], parent: int) -> None:
    global _function
    _function = function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(item: Any) -> Any:
    assert _function is not None
    return _function(item)
