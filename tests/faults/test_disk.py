"""The disk is full, or cannot be written to: an error that says what to do, on every rank, and nothing is lost."""

import json
import shutil

import pytest
from lives import assert_same, final

from corebatch.errors import CheckpointError
from corebatch.record.checkpoint import last_complete
from corebatch.trainer import CoresetConfig
from training import run, trainer

TWO = {"per_device_train_batch_size": 2, "ddp_timeout": 60}
FULL = {"model": 30_000, "optimizer": 60_000}
"""The size in bytes that no file may exceed; the model has 36 kB and is written first, then the optimizer's 90 kB."""


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk_while_a_checkpoint_is_saved(lives, uninterrupted, tmp_path, what):
    folder = tmp_path / "run"
    (outcome,) = lives.live("auto", folder, limit={"step": 6, "bytes": FULL[what]})
    assert (outcome["code"], outcome["error"]) == (3, "CheckpointError")
    assert f"At step 6, {folder}/checkpoint-6 could not be written" in outcome["message"]
    assert "MB are free there" in outcome["message"]
    assert f"The last complete checkpoint is {folder}/checkpoint-3" in outcome["message"]
    assert last_complete(folder).name == "checkpoint-3"
    lives.whole("auto", folder, resume=True)
    assert_same(final(folder), final(uninterrupted("auto")))


@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_learn_that_one_could_not_save(lives, tmp_path, rank):
    limit = {"step": 6, "bytes": 10_000}  # rank 1 writes its random numbers alone, which have 14 kB
    outcomes = lives.live("auto", tmp_path / "run", world=2, settings=TWO, ranks={rank: {"limit": limit}}, seconds=50)
    for number, outcome in enumerate(outcomes):
        assert (outcome["code"], outcome["error"]) == (3, "CheckpointError" if number == rank else "RankError"), outcome
        assert "At step 6" in outcome["message"]
        assert f"failed on rank {rank}" in outcome["message"] or number == rank
    assert last_complete(tmp_path / "run").name == "checkpoint-3"


def test_ranks_that_wait_for_each_other_within_a_save(lives, tmp_path):
    # With a best model, the Trainer waits for all ranks between the model and the optimizer.
    limit = {"step": 6, "bytes": 30_000}
    settings = {**TWO, "eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True}
    outcomes = lives.live("auto", tmp_path / "run", world=2, settings=settings, ranks={0: {"limit": limit}}, seconds=50)
    assert [outcome["error"] for outcome in outcomes] == ["CheckpointError", "RankError"]
    assert max(outcome["seconds"] for outcome in outcomes) < 40  # they did not wait for the timeout


@pytest.mark.parametrize("world", [1, 2])
def test_a_record_that_cannot_be_written_ends_the_run(lives, tmp_path, world):
    folder, settings = tmp_path / "run", TWO if world == 2 else {}
    limit = {"step": 5, "bytes": 100}
    outcomes = lives.live("float64", folder, world=world, settings=settings, ranks={0: {"limit": limit}}, seconds=50)
    for rank, outcome in enumerate(outcomes):
        assert (outcome["code"], outcome["error"]) == (3, "RankError" if rank else "CheckpointError"), outcome
        assert "selection.jsonl could not be written: OSError" in outcome["message"]
        assert f"{folder}/checkpoint-3" in outcome["message"]
    assert len(files(folder)[folder / "selection.jsonl"].splitlines()) == 4


def test_a_folder_that_cannot_be_written_to_is_found_before_training(lives, tmp_path):
    (outcome,) = lives.live("recommended", tmp_path / "run", limit={"step": 0, "bytes": 0})
    assert outcome["error"] == "CheckpointError"
    assert "output_dir should be a folder that can be written to" in outcome["message"]
    assert not list((tmp_path / "run").iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(trainer(folder, coreset=CoresetConfig(), max_steps=4, save_strategy="steps", save_steps=2))
    return folder


def test_a_damaged_checkpoint_is_passed_over_where_none_is_named(tmp_path, finished, caplog):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "checkpoint-4" / "optimizer.pt").write_bytes(b"")
    assert last_complete(folder).name == "checkpoint-2"
    assert "optimizer.pt should have" in caplog.text
    run(trainer(folder, coreset=CoresetConfig(), max_steps=4), resume_from_checkpoint=True)
    (folder / "checkpoint-2" / "rng_state.pth").unlink()
    with pytest.raises(CheckpointError, match=r"Found none\. .*optimizer\.pt should have .*rng_state\.pth is missing"):
        last_complete(folder)


def test_an_incomplete_checkpoint_pushes_out_no_complete_one(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    run(trainer(tmp_path, max_steps=2, **settings))
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-100").mkdir()
    run(trainer(tmp_path, max_steps=4, **settings), resume_from_checkpoint=True)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    saved = json.loads((tmp_path / "checkpoint-4" / "corebatch_state.json").read_text())
    assert saved["global_step"] == 4
