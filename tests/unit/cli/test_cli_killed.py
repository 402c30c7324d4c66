"""`corebatch train`, killed and started again with --resume_from_checkpoint true, comes to the same weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import corebatch
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


def kill_after(config, run, count):
    """The exit code of a run that is killed when so many lines of its record are there."""
    command = [sys.executable, "-m", "corebatch.cli.main", "train", str(config), *STEPS, "--output_dir", str(run)]
    source = str(Path(corebatch.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": source}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None and len(lines(run)) < count:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        errors = process.stderr.read().decode()
        assert process.wait(60) == -signal.SIGKILL, errors[-3000:]


def test_a_killed_command_goes_on(monkeypatch, config, tmp_path, capsys):
    whole, run = tmp_path / "whole", tmp_path / "killed"
    assert train(monkeypatch, config, "--output_dir", whole) == 0
    kill_after(config, run, 7)
    assert train(monkeypatch, config, "--output_dir", run) == 2  # nothing is overwritten unasked
    assert "--resume_from_checkpoint true" in capsys.readouterr().err
    assert train(monkeypatch, config, "--output_dir", run, "--resume_from_checkpoint", "true") == 0
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole, run))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    chosen = [[json.loads(line)["chosen"] for line in lines(folder)] for folder in (whole, run)]
    assert len(chosen[0]) == 30
    assert chosen[0] == chosen[1]
