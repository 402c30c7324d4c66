"""A server that has imported everything and forks processes, so that a start costs a fraction of a second: ranks that
train together, and `corebatch` commands where the start of Python is not what a test is about."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import corebatch

SECONDS = 280
"""After which a process is ended by the clock."""


class Server:
    """This script in a process of its own."""

    def __init__(self) -> None:
        package = Path(corebatch.__file__).parents[1]
        path = os.pathsep.join([str(package), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, **job: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

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

    def start(self, log: Path, environment: Mapping[str, str], **what: Any) -> Forked:
        return Forked(self._ask(do="start", log=str(log), environment=dict(environment), **what), log, self._ask)

    def close(self) -> None:
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0


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


def serve() -> None:
    """Answers each line of standard input, a JSON object."""
    import corebatch.cli.compare
    import corebatch.cli.train  # noqa: F401
    import training  # noqa: F401
    from quicker import before_forks

    before_forks()
    for line in sys.stdin:
        asked = json.loads(line)
        answer = {"start": start, "end": end}[asked.pop("do")](**asked)
        print(json.dumps(answer), flush=True)


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


def _live(log: str, environment: dict[str, str], what: dict[str, Any]) -> None:
    """Never returns: this process is what was asked for."""
    signal.alarm(SECONDS)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ |= environment
    code = 1
    try:
        if "words" in what:
            from corebatch.cli.main import main

            sys.argv = ["corebatch", *what["words"]]
            main()
        else:
            script = Path(what["script"])
            sys.path.insert(0, str(script.parent))
            importlib.import_module(script.stem).main(what["job"], what["rank"])
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
