"""A server that has imported everything and forks the ranks of jobs, so that a start costs a fraction of a second."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from corebatch import select

HERE = Path(__file__).parent
SECONDS = 280
"""After which a rank is ended by the clock."""


class Server:
    """A script of this folder that calls `serve`, started once."""

    def __init__(self, script: str) -> None:
        path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, *, world: int, **job: Any) -> list[int]:
        """Runs a job to its end: the exit codes of its ranks, whose outputs are in the folder's RANK.log."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job |= {"folder": str(folder), "world": world, "port": port}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0


def serve(main: Callable[[dict[str, Any], int], None]) -> None:
    """Answers each job of standard input, a JSON object a line, with the exit codes of its ranks.

    Args:
        main: is called with the job and the rank, in a fork for each rank.
    """
    torch.set_num_threads(1)
    select(torch.rand(8, 2), budget=4, selector="cube")  # loads what is compiled, which each child would do anew
    gc.collect()
    gc.freeze()  # the Trainer collects at each start; a child need not look through what was imported
    for line in sys.stdin:
        job, pids = json.loads(line), []
        for rank in range(job["world"]):
            pids.append(os.fork())
            if pids[-1] == 0:
                _be_rank(main, job, rank)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)


def _be_rank(main: Callable[[dict[str, Any], int], None], job: dict[str, Any], rank: int) -> None:
    """Never returns: this process, a fork, is one rank of a job."""
    signal.alarm(SECONDS)
    log = os.open(Path(job["folder"]) / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if job["world"] > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["world"])}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(job["port"])}
    code = 1
    try:
        main(job, rank)
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
