"""Our numbers arrive where the Trainer logs: TensorBoard and Trackio, on disk, without a network."""

import json
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
def test_our_numbers_arrive(tmp_path, forks, tracker):
    pytest.importorskip(tracker, reason=f"needs pip install 'corebatch[{tracker}]'")
    if tracker == "trackio" and "project" not in {field.name for field in fields(TrainingArguments)}:
        pytest.skip("needs a transformers that reports to Trackio by `project`")
    environment = {
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "TENSORBOARD_LOGGING_DIR": str(tmp_path / "events"),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = forks.script(HERE / "tracker_run.py", tmp_path, tracker, folder=tmp_path, environment=environment)
    assert done.wait() == 0, done.said()[-6000:]
    (told,) = [json.loads(line) for line in done.said().splitlines() if line.startswith('{"logged"')]
    assert sorted(told["logged"]) == ["2", "4"]
    for step, logged in told["logged"].items():
        kept = told["kept"][step]
        for key in OURS:
            assert kept[f"train/{key}"] == pytest.approx(logged[key], rel=1e-5), key
