"""Ray Train: two workers choose jointly; a Ray data set is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from corebatch.errors import ConfigError
from training import trainer

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def with_ray():
    pytest.importorskip("ray.train.torch", reason="Ray Train is not installed: pip install 'corebatch[ray]'")


@pytest.mark.slow
@pytest.mark.timeout(600)  # Ray takes a minute to start on two busy cores
def test_two_workers_choose_jointly_from_both_workers_rows(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'src'}",
        "HOME": str(tmp_path),  # Ray leaves a token there
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(ROOT / "examples" / "ray_train.py"), str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "selection.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    for line in lines:
        # workers x micro-batch x accumulation, and pool_factor 2 times as many drawn
        assert line["chosen_examples"] == 2 * 4 * 2
        assert line["pool_examples"] == 2 * line["chosen_examples"]
        assert sum(line["drawn"].values()) == line["pool_examples"]
        assert set(line["drawn"]) == {"sums", "differences"}
    # The checkpoint that Ray took is complete, selection's state and both workers' generators included.
    (taken,) = (tmp_path / "run" / "ray").glob("*/checkpoint_*/checkpoint")
    assert json.loads((taken / "corebatch_state.json").read_text())["global_step"] == 6
    assert {"corebatch_state.safetensors", "rng_state_0.pth", "rng_state_1.pth"} <= {f.name for f in taken.iterdir()}


def test_a_ray_data_set_is_refused(tmp_path):
    from ray.data.iterator import _IterableFromIterator  # what iter_torch_batches gives, and prepare_trainer looks for

    with pytest.raises(ConfigError, match=r"map-style data set.*Found a Ray data set"):
        trainer(tmp_path, train_dataset=_IterableFromIterator(lambda: iter(())), max_steps=2)
