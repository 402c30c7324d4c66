"""`corebatch train` on two ranks, by torchrun and by accelerate launch, chooses what it chooses on one."""

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

pytestmark = pytest.mark.slow
LAUNCHERS = {
    "alone": [],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"],
    "accelerate": [
        # --cpu would start ranks by mpirun; the config says use_cpu
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
    ],
}
SCRIPT = Path(corebatch.__file__).parent / "cli" / "main.py"


def train(launcher, config, run, rows):
    words = ["train", str(config), "--output_dir", str(run), "--per_device_train_batch_size", str(rows)]
    before = list(LAUNCHERS[launcher])
    if launcher == "accelerate":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            before += ["--main_process_port", str(free.getsockname()[1])]
    source = str(Path(corebatch.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": source}
    command = [sys.executable, *before, str(SCRIPT), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = [json.loads(line) for line in (run / "selection.jsonl").read_text().splitlines()]
    return done.stdout, lines, load_file(run / "adapter_model.safetensors")


def test_on_two_ranks_the_command_chooses_the_same(config, tmp_path):
    _, alone, weights = train("alone", config, tmp_path / "one", 4)
    for launcher in ("torchrun", "accelerate"):
        printed, lines, found = train(launcher, config, tmp_path / launcher, 2)
        assert printed.count("The model is in") == 1
        for one, two in zip(alone, lines, strict=True):
            for key in ("drawn", "chosen", "pool_examples", "labels_trained"):
                assert one[key] == two[key]
            assert two["bytes_sent"]
        assert found.keys() == weights.keys()
        assert all(torch.allclose(found[key], weights[key], atol=1e-5) for key in weights)
    assert (tmp_path / "torchrun" / "report.html").is_file()
