"""A server that has imported everything and forks processes, so that a start costs a fraction of a second: ranks that
train together, and `corebatch` commands and launchers where the start of Python is not what a test is about."""

from __future__ import annotations

import importlib
import json
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import corebatch

SECONDS = 280
"""After which a process is ended by the clock."""


class Server:
    """A fork of this process, which has imported most of what is needed. It is to be made before the first test, which
    may leave something behind; it ends when this process does."""

    def __init__(self) -> None:
        (hears, asks), (answers, tells) = os.pipe(), os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(asks)
            os.close(answers)
            _serve_apart(hears, tells)
        os.close(hears)
        os.close(tells)
        self._asks, self._answers = os.fdopen(asks, "w"), os.fdopen(answers)

    def ask(self, **job: Any) -> Any:
        self._asks.write(json.dumps(job) + "\n")
        self._asks.flush()
        return json.loads(self._answers.readline())

    def run(self, script: Path, folder: Path, *, world: int, **job: Any) -> list[int]:
        """Runs the `main(job, rank)` of a script to its end: the exit codes of its ranks, whose outputs are in the
        folder's RANK.log."""
        job |= {"folder": str(folder), "world": world}
        logs = [folder / f"{rank}.log" for rank in range(world)]
        ranks = self.ranks(world, logs, lambda rank: {"script": str(script), "job": job, "rank": rank})
        return [each.wait() for each in ranks]

    def commands(self, *words: Any, world: int, folder: Path) -> list[Forked]:
        """`corebatch words...` on so many ranks."""
        logs = [folder / f"{rank}.log" for rank in range(world)]
        return self.ranks(world, logs, lambda rank: {"words": [str(word) for word in words]})

    def ranks(self, world: int, logs: list[Path], what: Callable[[int], dict[str, Any]]) -> list[Forked]:
        """Processes that find each other by the variables that torchrun sets."""
        if world == 1:
            return [self.start(logs[0], {}, **what(0))]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        return [
            self.start(logs[rank], {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **what(rank))
            for rank in range(world)
        ]

    def script(self, script: Path, *words: Any, folder: Path, environment: Mapping[str, str]) -> Forked:
        """`python script words...`"""
        return self.start(folder / "said.log", environment, argv=[str(script), *map(str, words)])

    def launch(self, launcher: str, *words: Any, folder: Path) -> Forked:
        """`python -m launcher words...`, of torchrun's kind, with a Python script among the words: the ranks that it
        starts are forks as well, and run the script as the interpreter would."""
        return self.start(folder / "launched.log", {}, launcher=launcher, words=[str(word) for word in words])

    def start(self, log: Path, environment: Mapping[str, str], **what: Any) -> Forked:
        kept = {"COREBATCH_CACHE": os.environ["COREBATCH_CACHE"], **environment}
        return Forked(self.ask(do="start", log=str(log), environment=kept, **what), log, self.ask)

    def close(self) -> None:
        self._asks.close()
        self._answers.close()
        _, status = os.waitpid(self._pid, 0)
        assert status == 0


class Forked:
    """A process that the server has started. `returncode`: None until it was seen to be over."""

    def __init__(self, pid: int, log: Path, ask: Callable[..., Any]) -> None:
        self.pid, self._log, self._ask, self.returncode = pid, log, ask, None

    def poll(self) -> int | None:
        return self._end(block=False)

    def wait(self) -> int:
        code = self._end(block=True)
        assert code is not None
        return code

    def _end(self, block: bool) -> int | None:
        if self.returncode is None:
            self.returncode = self._ask(do="end", pid=self.pid, block=block)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # its number is still its own: the server has not waited for it
            os.kill(self.pid, number)

    def said(self) -> str:
        """All that it printed."""
        return self._log.read_text()


# ---- the server ------------------------------------------------------------------------------------------------------


def _serve_apart(hears: int, tells: int) -> NoReturn:
    """This process is the server. What pytest has put around it is taken away."""
    code = 1
    try:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # under `nohup` a hang-up is ignored, by runs as well
        os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        folders = [str(Path(corebatch.__file__).parents[1]), str(Path(__file__).parent)]
        os.environ["PYTHONPATH"] = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
        # Processes that are spawned import this module anew.
        sys.modules["__main__"] = types.ModuleType("__main__")
        _outputs(2)
        serve(hears, tells)
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def _outputs(handle: int) -> None:
    """Lets this process print, and log, into a file that is open."""
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    logging.root.handlers.clear()  # pytest's own
    for found in logging._handlerList:  # type: ignore[attr-defined]
        handler = found()
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)


def serve(hears: int, tells: int) -> None:
    """Answers each line that it hears, a JSON object."""
    import corebatch.cli.compare
    import corebatch.cli.train  # noqa: F401
    import training  # noqa: F401
    from quicker import before_forks

    before_forks()
    with os.fdopen(hears) as lines, os.fdopen(tells, "w") as answers:
        for line in lines:
            asked = json.loads(line)
            answer = {"start": start, "end": end, "live": live}[asked.pop("do")](**asked)
            print(json.dumps(answer), flush=True, file=answers)


def live(**job: Any) -> Any:
    """The lives of runs, to their ends (tests/faults)."""
    return importlib.import_module("fork_server").serve(job)


def start(log: str, environment: dict[str, str], **what: Any) -> int:
    """The number of a new process."""
    pid = os.fork()
    if pid == 0:
        _live(log, environment, what)
    return pid


def end(pid: int, block: bool) -> int | None:
    """The exit code of a process; without `block` None while it lives."""
    found, status = os.waitpid(pid, 0 if block else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _live(log: str, environment: dict[str, str], what: dict[str, Any]) -> NoReturn:
    """This process is what was asked for."""
    signal.alarm(SECONDS)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _outputs(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    os.environ |= environment
    if "launcher" in what:
        from torch.distributed.elastic.multiprocessing import subprocess_handler

        subprocess_handler.subprocess_handler.Popen = Script
        sys.argv = [what["launcher"], *what["words"]]
        _until_end(importlib.import_module(what["launcher"]).main)
    elif "words" in what:
        from corebatch.cli.main import main

        sys.argv = ["corebatch", *what["words"]]
        _until_end(main)
    elif "argv" in what:
        _interpret(what["argv"])
    script = Path(what["script"])
    sys.path.insert(0, str(script.parent))
    _until_end(lambda: importlib.import_module(script.stem).main(what["job"], what["rank"]))


def _interpret(argv: list[str]) -> NoReturn:
    """A script and its words, as by the interpreter."""
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    _until_end(lambda: runpy.run_path(argv[0], run_name="__main__"))


def _until_end(main: Callable[[], Any]) -> NoReturn:
    """Ends this process as the interpreter would, but for what waits for its exit."""
    code = 1
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Script:
    """In the place of the `subprocess.Popen` by which torchrun starts `python -u script words...`: a fork, in a session
    of its own."""

    def __init__(self, args: tuple[str, ...], env: dict[str, str], start_new_session: bool, **outputs: Any) -> None:
        assert start_new_session
        assert args[0] == sys.executable
        assert not any(outputs.values())
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.environ.clear()
            os.environ |= env
            _interpret([word for word in args[1:] if word != "-u"])

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = end(self.pid, block=False)
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a forked script", timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)
