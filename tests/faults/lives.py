"""Lives of runs in children of the server of forks, and what they have come to."""

import json
import socket
from pathlib import Path

import torch

TIMED = ("ms", "memory_mb", "mfu", "seconds")


class Lives:
    """Starts runs in children of the server of forks."""

    def __init__(self, forks) -> None:
        self.forks = forks

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
        answer = self.forks.ask(do="live", runs=jobs, kill=kill, seconds=seconds)
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
