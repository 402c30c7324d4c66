"""How many runs go side by side, and what is said of the end."""

from __future__ import annotations

import io
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from corebatch.bench.runs import processes
from corebatch.bench.runs.jobs import Each
from corebatch.bench.runs.processes import Processes, ProcessLostError, on_cores
from corebatch.bench.runs.progress import progress, to_the_end


@pytest.mark.parametrize(
    "cores, parameters, free, seeds, threads, expected",
    [
        (8, 1_000_000, 64 << 30, 5, None, 8),
        (8, 1_000_000, 64 << 30, 2, None, 4),  # no more than runs
        (8, 1_000_000, 64 << 30, 5, 2, 4),
        (8, 1_000_000, 7 << 30, 5, None, 3),  # memory holds twice as many
        (8, 300_000_000, 640 << 30, 5, None, 1),  # too large for a thread
        (1, 1_000_000, 64 << 30, 5, None, 1),
    ],
)
def test_a_small_model_has_a_process_a_core(
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    parameters: int,
    free: int,
    seeds: int,
    threads: int | None,
    expected: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(processes.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    monkeypatch.setattr(processes, "skeleton", lambda _: torch.nn.Linear(1, parameters, bias=False, device="meta"))
    own = SimpleNamespace(seeds=tuple(range(seeds)), threads=threads)
    parts: Any = SimpleNamespace(own=own, settings=None, arms=("ours", "theirs"))
    assert on_cores(parts) == expected


def test_the_end_is_told_at_the_pace_so_far() -> None:
    assert to_the_end(60.0, 1.0, 3.0) == "about 2 min 00 s to the end"
    assert to_the_end(60.0, 0.0, 3.0) == ""
    assert to_the_end(60.0, 3.0, 3.0) == ""


def test_without_a_terminal_each_line_has_the_time_to_the_end() -> None:
    text = io.StringIO()
    with progress(Console(file=text, width=200), "tuning", 2, 2.0, after=4.0) as tick:
        tick("one", 1.0)
        tick("two", 1.0)
    first, one, two = text.getvalue().splitlines()
    assert first == "tuning: 2 runs"
    assert one.startswith("one; about ")
    assert two.startswith("two; about "), "runs come after tuning"
    assert two.endswith("to the end")


def test_work_that_is_not_known_says_nothing_of_the_end() -> None:
    text = io.StringIO()
    with progress(Console(file=text, width=200), "timing", 1) as tick:
        tick("one")
    assert text.getvalue().splitlines() == ["timing: 1 runs", "one"]


@dataclass(frozen=True)
class Fragile:
    """A job whose process is killed in the middle of it, the first `deaths` times."""

    title: str
    folder: Path
    deaths: int = 0

    def run(self, here: Any) -> dict[str, Any]:
        before = self.folder / self.title
        times = before.stat().st_size if before.exists() else 0
        with open(before, "ab") as file:
            file.write(b".")
        if times < self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"times": times + 1}


@pytest.mark.slow
def test_a_killed_process_loses_no_run_but_one_that_is_killed_twice_and_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = SimpleNamespace(devices=None, processes=1, threads=1)
    arm = SimpleNamespace(rows_drawn=1, method=SimpleNamespace(name="mine"))
    parts: Any = SimpleNamespace(own=own, settings=SimpleNamespace(training={"use_cpu": True}), arms=[arm])
    jobs: list[Any] = [Fragile("once", tmp_path, 1), Fragile("twice", tmp_path, 2), Fragile("whole", tmp_path)]
    timed: Any = Fragile("timed", tmp_path, 1)
    ended = {}

    def drain(each: Each) -> None:
        for job, found in each(jobs):
            ended[job.title] = found["times"]

    with Processes(parts) as workers:
        with workers.all() as each, pytest.raises(ProcessLostError, match="of twice ended twice before their runs"):
            drain(each)
        assert ended == {"once": 2, "whole": 1}
        assert "once: its process ended" in caplog.text
        with workers.one() as run, pytest.raises(ProcessLostError, match="The process of timed ended before its run"):
            run(timed)
