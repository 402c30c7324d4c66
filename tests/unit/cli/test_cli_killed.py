"""`corebatch train`, killed and started again with --resume_from_checkpoint true, comes to the same weights."""

import json
import signal
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from corebatch.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
STEPS = ("--max_steps", "30", "--save_total_limit", "1")


def train(monkeypatch, config, *words):
    monkeypatch.setattr(sys, "argv", ["corebatch", "train", str(config), *STEPS, *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


def lines(run):
    log = run / "selection.jsonl"
    return log.read_text().splitlines() if log.exists() else []


def kill_after(forks, config, run, count):
    """The exit code of a run that is killed when so many lines of its record are there."""
    (process,) = forks.commands("train", config, *STEPS, "--output_dir", run, world=1, folder=run.parent)
    while process.poll() is None and len(lines(run)) < count:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.said()[-3000:]


def test_a_killed_command_goes_on(monkeypatch, forks, config, tmp_path, capsys):
    whole, run = tmp_path / "whole", tmp_path / "killed"
    assert train(monkeypatch, config, "--output_dir", whole) == 0
    kill_after(forks, config, run, 7)
    assert train(monkeypatch, config, "--output_dir", run) == 2  # nothing is overwritten unasked
    assert "--resume_from_checkpoint true" in capsys.readouterr().err
    assert train(monkeypatch, config, "--output_dir", run, "--resume_from_checkpoint", "true") == 0
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole, run))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    chosen = [[json.loads(line)["chosen"] for line in lines(folder)] for folder in (whole, run)]
    assert len(chosen[0]) == 30
    assert chosen[0] == chosen[1]
