"""Our numbers arrive where the Trainer logs: TensorBoard and Trackio, on disk, without a network."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

HERE = Path(__file__).parent
OURS = (
    *("pool_loss", "chosen_loss", "tokens_scored", "tokens_trained", "tokens_trained_per_second", "padding_trained"),
    *("effective_sample_size", "weight_max", "gradient_error", "gradient_cosine", "gradient_length"),
    *("loss/algebra", "loss/geometry", "loss/logic", "loss/rare"),
    *("gradient_error_random", "mfu", "ms_score", "ms_track", "ms_train", "memory_mb_train"),
)
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_our_numbers_arrive(tmp_path, tracker):
    pytest.importorskip(tracker, reason=f"needs pip install 'corebatch[{tracker}]'")
    if tracker == "trackio" and "project" not in {field.name for field in fields(TrainingArguments)}:
        pytest.skip("needs a transformers that reports to Trackio by `project`")
    environment = {
        **os.environ,
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "TENSORBOARD_LOGGING_DIR": str(tmp_path / "events"),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, str(HERE / "tracker_run.py"), str(tmp_path), tracker]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (told,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"logged"')]
    assert sorted(told["logged"]) == ["2", "4"]
    for step, logged in told["logged"].items():
        kept = told["kept"][step]
        for key in OURS:
            assert kept[f"train/{key}"] == pytest.approx(logged[key], rel=1e-5), key
