"""How many runs go side by side, and what is said of the end."""

from __future__ import annotations

import io
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from corebatch.bench.runs import processes
from corebatch.bench.runs.processes import on_cores
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
