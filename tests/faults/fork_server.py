"""Imports everything once and forks a child for each life of a run, so that a kill costs a fraction of a second.

Reads jobs from standard input and answers on standard output, a JSON object a line. A job is

    {"runs": [{"case", "folder", "settings", "resume", "rank", "world", "port", ...}, ...],
     "kill": {"run": 0, "delay": seconds}, "seconds": bound}

with a run for each process. `kill` kills a process by SIGKILL, or by the `signal` that it names, so long after it has
told that its moment has come (see `cases.py`). What the processes leave is in `result.json` and `life.log` beside their
folders.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from cases import live

from quicker import before_forks


def child(run: dict, tell: int, log: int) -> None:
    """Never returns. What it prints goes into a pipe, which no limit on the size of files closes."""
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(run.get("environment", {}))
    code = live(run, tell)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve(job: dict) -> dict:
    """Runs the processes of a job to their ends."""
    pids, pipes, logs, kill = [], [], [], job.get("kill")
    for run in job["runs"]:
        (hear, tell), (read, write) = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            child(run, tell, write)
        os.close(tell)
        os.close(write)
        os.set_blocking(read, False)
        pids.append(pid)
        pipes.append(hear)
        logs.append(read)
    told, codes, texts = None, [None] * len(pids), [b""] * len(pids)
    began, seconds = time.monotonic(), [0.0] * len(pids)
    if kill is not None:
        os.set_blocking(pipes[kill["run"]], False)
    while None in codes:
        now = time.monotonic()
        if kill is not None and told is None and read_all(pipes[kill["run"]]):
            told = now
        if told is not None and now - told >= kill.get("delay", 0.0) and codes[kill["run"]] is None:
            os.kill(
                pids[kill["run"]], signal.Signals[kill.get("signal", "SIGKILL")]
            )  # not yet waited for, so the number is still its own
            kill, told, began = None, None, now
        for i, pid in enumerate(pids):
            texts[i] += read_all(logs[i])
            if codes[i] is None:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[i], seconds[i] = os.waitstatus_to_exitcode(status), time.monotonic() - began
                elif now - began > job.get("seconds", 120):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    for i, run in enumerate(job["runs"]):
        Path(run["log"]).write_bytes(texts[i] + read_all(logs[i]))
    for pipe in pipes + logs:
        os.close(pipe)
    return {"codes": codes, "seconds": seconds}


def read_all(pipe: int) -> bytes:
    """What waits in a pipe; nothing where nothing does."""
    text = b""
    while True:
        try:
            part = os.read(pipe, 65536)
        except BlockingIOError:
            return text
        if not part:
            return text
        text += part


if __name__ == "__main__":
    before_forks()
    print(json.dumps({"ready": Path(__file__).name}), flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)
