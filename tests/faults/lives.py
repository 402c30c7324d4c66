"""A server that has imported everything, lives of runs in children of it, and what they have come to."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

import corebatch

HERE = Path(__file__).parent
TIMED = ("ms", "memory_mb", "mfu", "seconds")


def environment():
    """Of a process that finds this corebatch and these tests."""
    package = Path(corebatch.__file__).parents[1]
    path = os.pathsep.join(map(str, (package, HERE, HERE.parent)))
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}


class Lives:
    """Starts runs in forked children of a server."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert json.loads(self._process.stdout.readline()) == {"ready": "fork_server.py"}

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(60) == 0

    def live(self, case, folder, *, resume=None, world=1, kill=None, seconds=120, ranks=None, **run):
        """One life of a run, on `world` processes.

        Args:
            kill: {"run": rank, "delay": seconds} after the run's `moment`, a step that begins. A process that is to be
                killed (no other `signal`) waits for it at the end of its last step, so that no machine is too fast.
            ranks: what is particular of each rank.

        Returns:
            A dictionary for each process: code, seconds (after a kill), error, message, steps.
        """
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        port, jobs = free_port() if world > 1 else 0, []
        for rank in range(world):
            result = folder.parent / f"{folder.name}-{rank}.json"
            result.unlink(missing_ok=True)
            job = {"case": case, "folder": str(folder), "resume": resume, "rank": rank, "world": world, "port": port}
            job |= {"result": str(result), "log": str(result.with_suffix(".log")), **run, **(ranks or {}).get(rank, {})}
            job["killed"] = kill is not None and kill["run"] == rank and "signal" not in kill
            jobs.append(job)
        self._process.stdin.write(json.dumps({"runs": jobs, "kill": kill, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        found = []
        for job, code, took in zip(jobs, answer["codes"], answer["seconds"], strict=True):
            result = Path(job["result"])
            outcome = json.loads(result.read_text()) if result.exists() else {}
            found.append({"code": code, "seconds": took, "log": Path(job["log"]).read_text(), **outcome})
        return found

    def whole(self, case, folder, **run):
        """A life that comes to its end."""
        outcomes = self.live(case, folder, **run)
        for outcome in outcomes:
            assert outcome["code"] == 0, outcome["log"][-4000:]
        return outcomes[0]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def final(folder):
    """What a run has come to: weights, optimizer, random numbers, record without times."""
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    lines = [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]
    return {
        "weights": torch.load(folder.parent / f"{folder.name}-0.json.pt"),
        "last": last.name,
        "optimizer": torch.load(last / "optimizer.pt"),
        "scheduler": torch.load(last / "scheduler.pt"),
        "rows": (folder / "chosen.jsonl").read_text(),
        "examples": (folder / "examples.json").read_text(),
        "lines": [{key: value for key, value in line.items() if key not in TIMED} for line in lines],
    }


def assert_same(one, other):
    """Bit for bit, through dictionaries and lists."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, its in zip(one, other, strict=True):
            assert_same(mine, its)
    else:
        assert one == other or (one != one and other != other)
