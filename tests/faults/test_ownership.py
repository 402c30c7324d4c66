"""One run owns its folder, and one that has made all its steps has nothing to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import corebatch
from corebatch.errors import CheckpointError, ConfigError
from corebatch.record.folder_lock import LOCK, OWNER, owned
from corebatch.trainer import CoresetConfig
from training import mixture, run, same, trainer, weights

pytestmark = pytest.mark.usefixtures("one_thread")
HOLD = """
import sys
from pathlib import Path
from corebatch.record.folder_lock import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def files(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def held(tmp_path):
    """A folder that another process holds."""
    folder = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(Path(corebatch.__file__).parents[1])}
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"held\n"
        yield folder, process
        process.kill()


def test_a_second_process_is_refused_and_told_who_is_there(held):
    folder, process = held
    for settings in ({}, {"resume_from_checkpoint": True}):
        for pool_factor in (1, 4):
            made = trainer(folder, coreset=CoresetConfig(pool_factor=pool_factor), max_steps=2)
            with pytest.raises(
                ConfigError, match=rf"belongs to another process: {process.pid} on .*, started 20\d\d-"
            ) as caught:
                run(made, **settings)
            assert str(folder) in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == [LOCK, OWNER]
    process.kill()
    process.wait()
    assert run(trainer(folder, coreset=CoresetConfig(), max_steps=1)).state.global_step == 1
    assert not {LOCK, OWNER} & {path.name for path in folder.iterdir()}


def test_a_lock_that_cannot_say_whose_it_is(held):
    (held[0] / OWNER).write_text("nothing")
    with pytest.raises(ConfigError, match="belongs to another process"), owned(held[0]):
        pass


def test_a_process_may_hold_its_folder_twice(tmp_path):
    with owned(tmp_path / "run"), owned(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).exists()
        run(trainer(tmp_path / "run", coreset=CoresetConfig(), max_steps=1))
        assert (tmp_path / "run" / LOCK).exists()
    assert not (tmp_path / "run" / LOCK).exists()


def test_files_that_a_killed_run_left_hold_nobody_up(tmp_path):
    (tmp_path / LOCK).touch()
    (tmp_path / OWNER).write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0}))
    with owned(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()


SETTINGS = {
    "steps": {"max_steps": 4},
    "epochs": {"max_steps": -1, "num_train_epochs": 1.0},  # 6 steps
    "part of an epoch": {"max_steps": -1, "num_train_epochs": 0.5},
    "best": {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True},
}


@pytest.mark.parametrize("pool_factor", [1, 2])
@pytest.mark.parametrize("case", SETTINGS)
def test_a_finished_run_has_nothing_to_do(tmp_path, caplog, case, pool_factor):
    settings = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, **SETTINGS[case]}
    if "eval_strategy" in settings:
        settings["extra"] = {"eval_dataset": mixture(8, seed=5)}

    def made(**more):
        return trainer(tmp_path, coreset=CoresetConfig(pool_factor=pool_factor), **{**settings, **more})

    whole = run(made())
    steps, before = whole.state.global_step, files(tmp_path)
    for _ in range(2):
        again = made()
        result = again.train(resume_from_checkpoint=True)
        assert (result.global_step, again.state.global_step) == (steps, steps)
        assert files(tmp_path) == before
        assert same(weights(whole), weights(again))
        assert f"All {steps} steps are done" in caplog.text
    longer = run(made(max_steps=steps + 2), resume_from_checkpoint=True)
    assert longer.state.global_step == steps + 2
    if pool_factor > 1:
        assert len((tmp_path / "selection.jsonl").read_text().splitlines()) == steps + 2
    shorter = made(max_steps=steps)
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match=f"has made {steps + 2} steps, more than the {steps}"):
        run(shorter, resume_from_checkpoint=True)
    assert files(tmp_path) == before


def test_trackers_do_not_begin_a_run_that_has_nothing_to_do(tmp_path):
    from transformers import TrainerCallback

    class Tracker(TrainerCallback):
        begun = 0

        def on_train_begin(self, *_, **__):
            self.begun += 1

    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "coreset": CoresetConfig()}
    run(trainer(tmp_path, **settings))
    made, tracker = trainer(tmp_path, **settings), Tracker()
    made.add_callback(tracker)
    count = len(made.callback_handler.callbacks)
    run(made, resume_from_checkpoint=True)
    assert (tracker.begun, len(made.callback_handler.callbacks)) == (0, count)
    assert torch.isfinite(torch.tensor(made.train(resume_from_checkpoint=True).training_loss))
