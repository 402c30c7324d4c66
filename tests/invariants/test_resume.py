"""Interrupted and resumed is uninterrupted, bit for bit, in mid-epoch."""

import json
import shutil

import pytest

from corebatch.errors import CheckpointError
from corebatch.trainer import CoresetConfig
from training import run, same, tiny_model, trainer, weights

CASES = {
    "recommended": (CoresetConfig(), {}),
    "colm": (CoresetConfig.colm(), {}),
    "optimizer_scale": (CoresetConfig(normalise="optimizer", selector="balanced"), {}),
    # transformers 4 is reentrant by default, and then trains no adapter, with the plain Trainer either
    "checkpointing": (
        CoresetConfig(),
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    ),
}


def untimed(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("ms", "memory_mb", "mfu", "seconds")} for line in lines]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_resumed_is_uninterrupted(tmp_path, case, lora):
    coreset, settings = CASES[case]
    settings = {"max_steps": 11, "save_strategy": "steps", "save_steps": 4, **settings}  # 6 steps an epoch

    def made(folder):
        return trainer(folder, tiny_model(dropout=0.1, lora=lora), coreset, **settings)

    whole = run(made(tmp_path / "whole"))
    # Killed in step 10: the log is ahead of the last checkpoint, its last line is cut, and a save is unfinished.
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole", killed)
    for name in ("checkpoint-11",):
        shutil.rmtree(killed / name)
    (killed / "checkpoint-12").mkdir()
    log = (killed / "selection.jsonl").read_text()
    (killed / "selection.jsonl").write_text(log[: log.rindex('"epoch"')])
    resumed = run(made(killed), resume_from_checkpoint=True)
    assert resumed.state.global_step == 11
    assert same(weights(whole), weights(resumed))
    assert untimed(tmp_path / "whole" / "selection.jsonl") == untimed(killed / "selection.jsonl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(trainer(folder, coreset=CoresetConfig(), max_steps=4, save_strategy="steps", save_steps=2))
    return folder


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda c: (c / "corebatch_state.json").unlink(), "corebatch_state.json"),
        (lambda c: (c / "corebatch_state.safetensors").write_bytes(b"x"), "cannot be read"),
        (lambda c: (c / "corebatch_state.json").write_text('{"global_step": 4, "cor'), "cannot be read"),
        (lambda c: (c / "corebatch_state.json").write_text('{"global_step": 3, "coreset": {}}'), "one step"),
    ],
)
def test_a_damaged_checkpoint_is_refused_before_anything_changes(tmp_path, finished, damage, message):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    damage(folder / "checkpoint-4")
    before = files(folder)
    made = trainer(folder, coreset=CoresetConfig(), max_steps=6)
    with pytest.raises(CheckpointError, match=message):
        run(made, resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert files(folder) == before


def test_other_settings_are_named(tmp_path, finished):
    made = trainer(tmp_path, coreset=CoresetConfig(seed=9), max_steps=6)
    with pytest.raises(CheckpointError, match="seed was 0 and is 9"):
        run(made, resume_from_checkpoint=str(finished / "checkpoint-4"))


def test_nothing_to_resume_from(tmp_path):
    with pytest.raises(CheckpointError, match="Found none"):
        run(trainer(tmp_path, coreset=CoresetConfig()), resume_from_checkpoint=True)


def test_a_new_run_in_the_same_folder_keeps_the_old_log(tmp_path):
    for _ in range(2):
        run(trainer(tmp_path, coreset=CoresetConfig(), max_steps=2))
    assert len((tmp_path / "selection.jsonl").read_text().splitlines()) == 2
    assert len((tmp_path / "selection.old-1.jsonl").read_text().splitlines()) == 2
