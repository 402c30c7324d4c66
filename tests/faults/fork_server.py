"""Imports everything once and forks a child for each life of a run, so that a kill costs a fraction of a second.

Reads jobs from standard input and answers on standard output, a JSON object a line. A job is

    {"runs": [{"case", "folder", "settings", "resume", "rank", "world", "port", ...}, ...],
     "kill": {"run": 0, "delay": seconds}, "seconds": bound}

with a run for each process. `kill` kills a process by SIGKILL so long after it has told that its moment has come (see
`cases.py`). What the processes leave is in `result.json` and `life.log` beside their folders.
"""

import gc
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from cases import live


def child(run: dict, tell: int) -> None:
    """Never returns."""
    log = os.open(run["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(run.get("environment", {}))
    code = live(run, tell)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve(job: dict) -> dict:
    """Runs the processes of a job to their ends."""
    pids, pipes, kill = [], [], job.get("kill")
    for run in job["runs"]:
        hear, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(hear)
            child(run, tell)
        os.close(tell)
        pids.append(pid)
        pipes.append(hear)
    if kill is not None and os.read(pipes[kill["run"]], 1):  # nothing where it ended before its moment
        time.sleep(kill.get("delay", 0.0))
        os.kill(pids[kill["run"]], signal.SIGKILL)  # not yet waited for, so the number is still its own
    codes: list[int | None] = [None] * len(pids)
    began, seconds = time.monotonic(), [0.0] * len(pids)
    while None in codes:
        for i, pid in enumerate(pids):
            if codes[i] is None:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[i], seconds[i] = os.waitstatus_to_exitcode(status), time.monotonic() - began
                elif time.monotonic() - began > job.get("seconds", 120):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    for pipe in pipes:
        os.close(pipe)
    return {"codes": codes, "seconds": seconds}


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # the Trainer collects at each start; a child need not look through what was imported
    print(json.dumps({"ready": Path(__file__).name}), flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)
