"""`corebatch train` started by torchrun on two ranks: rank 0 alone writes, and a refusal ends both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def launch(config, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["corebatch.cli.main", "train", str(config), "--ddp_backend", "gloo", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def test_two_ranks_leave_one_run_and_then_refuse_its_folder(config, settings):
    done = launch(config, "--per_device_train_batch_size", 2)
    assert done.returncode == 0, done.stderr[-4000:]
    run = Path(settings["output_dir"])
    lines = [json.loads(line) for line in (run / "selection.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all((line["pool_examples"], line["chosen_examples"]) == (16, 8) for line in lines)
    assert json.loads((run / "corebatch.json").read_text())["training"]["world_size"] == 2
    assert (run / "adapter_model.safetensors").is_file()
    assert (run / "report.html").is_file()
    assert done.stdout.count("The model is in") == 1
    again = launch(config)
    assert again.returncode != 0
    assert "corebatch: output_dir:" in again.stderr
    assert "not empty" in again.stderr
