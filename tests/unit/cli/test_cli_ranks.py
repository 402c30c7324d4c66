"""`corebatch train` on two ranks, by torchrun and by accelerate launch, chooses what it chooses on one; a refusal ends
both ranks."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import corebatch
from corebatch.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("one_thread")]
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"],
    "accelerate": [
        # --cpu would start ranks by mpirun; the config says use_cpu
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
    ],
}
SCRIPT = Path(corebatch.__file__).parent / "cli" / "main.py"


def words(config, run, rows):
    return ["train", str(config), "--output_dir", str(run), "--per_device_train_batch_size", str(rows)]


def launch(launcher, config, run):
    before = list(LAUNCHERS[launcher])
    if launcher == "accelerate":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            before += ["--main_process_port", str(free.getsockname()[1])]
    source = str(Path(corebatch.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": source}
    command = [sys.executable, *before, str(SCRIPT), *words(config, run, 2), "--ddp_backend", "gloo"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def left(run):
    """The record and the weights."""
    lines = [json.loads(line) for line in (run / "selection.jsonl").read_text().splitlines()]
    return lines, load_file(run / "adapter_model.safetensors")


def test_on_two_ranks_the_command_chooses_the_same(config, tmp_path, monkeypatch, forks):
    monkeypatch.setattr(sys, "argv", ["corebatch", *words(config, tmp_path / "one", 4)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    alone, weights = left(tmp_path / "one")
    for launcher in LAUNCHERS:
        run = tmp_path / launcher
        done = launch(launcher, config, run)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert done.stdout.count("The model is in") == 1
        lines, found = left(run)
        assert [line["step"] for line in lines] == [1, 2, 3, 4]
        assert all((line["pool_examples"], line["chosen_examples"]) == (16, 8) for line in lines)
        for one, two in zip(alone, lines, strict=True):
            for key in ("drawn", "chosen", "pool_examples", "labels_trained"):
                assert one[key] == two[key]
            assert two["bytes_sent"]
        assert found.keys() == weights.keys()
        assert all(torch.allclose(found[key], weights[key], atol=1e-5) for key in weights)
        assert json.loads((run / "corebatch.json").read_text())["training"]["world_size"] == 2
        assert (run / "report.html").is_file()
    again = forks.commands(*words(config, tmp_path / "torchrun", 2), "--ddp_backend", "gloo", world=2, folder=tmp_path)
    assert [each.wait() for each in again] == [2, 2]
    assert all("corebatch: output_dir:" in each.said() and "not empty" in each.said() for each in again)
