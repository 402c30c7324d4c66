"""Interrupted and resumed is uninterrupted, bit for bit, in mid-epoch."""

import json
import shutil

import pytest
import torch

from corebatch.errors import CheckpointError
from corebatch.trainer import CoresetConfig
from training import mixture, run, same, tiny_model, trainer, weights

CASES = {
    "recommended": (CoresetConfig(), {}),
    "scored_once": (CoresetConfig(scoring={"way": "remembered", "unknown": "score"}), {}),
    "colm": (CoresetConfig.colm(), {}),
    "optimizer_scale": (CoresetConfig(normalise="optimizer", selector="balanced"), {}),
    "following": (CoresetConfig.following(), {}),
    "following_features": (CoresetConfig(selector="balanced", feedback=0.9, scoring="remembered"), {}),
    # transformers 4 is reentrant by default, and then trains no adapter, with the plain Trainer either
    "checkpointing": (
        CoresetConfig(scoring={"way": "remembered", "unknown": "score"}),
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
    rows = (killed / "chosen.jsonl").read_text()
    (killed / "chosen.jsonl").write_text(rows[: rows.rindex('"chosen"')])
    resumed = run(made(killed), resume_from_checkpoint=True)
    assert resumed.state.global_step == 11
    assert same(weights(whole), weights(resumed))
    assert untimed(tmp_path / "whole" / "selection.jsonl") == untimed(killed / "selection.jsonl")
    for name in ("chosen.jsonl", "examples.json"):
        assert (tmp_path / "whole" / name).read_text() == (killed / name).read_text()
    assert [line["step"] for line in untimed(killed / "chosen.jsonl")] == list(range(1, 12))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(trainer(folder, coreset=CoresetConfig(), max_steps=4, save_strategy="steps", save_steps=2))
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda c: (c / "corebatch_state.json").unlink(), "corebatch_state.json"),
        (lambda c: (c / "corebatch_state.safetensors").write_bytes(b"x"), "corebatch_state.safetensors should have"),
        (lambda c: (c / "corebatch_state.json").write_text('{"global_step": 4, "cor'), "cannot be read"),
        (lambda c: (c / "rng_state.pth").unlink(), "rng_state.pth is missing"),
        (lambda c: cut(c / "optimizer.pt"), "optimizer.pt should have .* bytes and has"),
        (lambda c: cut(c / "adapter_model.safetensors"), "adapter_model.safetensors should have .* bytes and has"),
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


def resumed_from(folder, tmp_path, *made, **settings):
    return run(
        trainer(tmp_path, *made, **{"coreset": CoresetConfig(), "max_steps": 6, **settings}),
        resume_from_checkpoint=str(folder / "checkpoint-4"),
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"train_dataset": mixture(95)}, "train_dataset was examples 96, .* and is examples 95"),
        ({"train_dataset": mixture(seed=4)}, "train_dataset was examples 96, hash .* and is examples 96, hash"),
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"optim": "sgd"}, "optim was 'adamw_torch.*' and is 'sgd'"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps=2 fits"),
        ({"per_device_train_batch_size": 8}, "gradient_accumulation_steps=1 fits"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_runs_checkpoint_is_refused(tmp_path, finished, settings, message):
    before = files(finished)
    with pytest.raises(CheckpointError, match=message):
        resumed_from(finished, tmp_path, **settings)
    assert files(finished) == before
    assert files(tmp_path) == {}


def test_another_models_checkpoint_is_refused(tmp_path, finished):
    with pytest.raises(CheckpointError, match=r"trained_parameters \d+, .* and is class LlamaForCausalLM"):
        resumed_from(finished, tmp_path, tiny_model(lora=False))


def test_a_plain_trainers_checkpoint_is_refused(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    run(trainer(tmp_path, plain=True, **settings))
    with pytest.raises(CheckpointError, match=r"another trainer's"):
        run(trainer(tmp_path, coreset=CoresetConfig(), **settings), resume_from_checkpoint=True)


def test_micro_batches_may_be_cut_otherwise(tmp_path, finished, caplog):
    shutil.copytree(finished, tmp_path / "run")
    made = resumed_from(finished, tmp_path / "run", per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert made.state.global_step == 6
    assert "not bit for bit" in caplog.text


def test_without_skipping_data_it_is_another_run_and_says_so(tmp_path, finished, caplog):
    shutil.copytree(finished, tmp_path / "run")
    made = resumed_from(finished, tmp_path / "run", ignore_data_skip=True)
    assert made.state.global_step == 6
    assert "ignore_data_skip is true" in caplog.text
    assert len(untimed(tmp_path / "run" / "selection.jsonl")) == 6


def test_the_arguments_in_a_checkpoint_are_those_of_the_run(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "save_total_limit": 1}
    made = run(trainer(tmp_path, coreset=CoresetConfig(), **settings))
    saved = torch.load(tmp_path / "checkpoint-4" / "training_args.bin", weights_only=False)
    assert saved.save_total_limit == made.args.save_total_limit == 1
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_nothing_to_resume_from(tmp_path):
    with pytest.raises(CheckpointError, match="Found none"):
        run(trainer(tmp_path, coreset=CoresetConfig()), resume_from_checkpoint=True)


def test_a_new_run_in_the_same_folder_keeps_the_old_log(tmp_path):
    for _ in range(2):
        run(trainer(tmp_path, coreset=CoresetConfig(), max_steps=2))
    assert len((tmp_path / "selection.jsonl").read_text().splitlines()) == 2
    assert len((tmp_path / "selection.old-1.jsonl").read_text().splitlines()) == 2
    assert len((tmp_path / "chosen.jsonl").read_text().splitlines()) == 2
    assert len((tmp_path / "chosen.old-1.jsonl").read_text().splitlines()) == 2


def test_a_run_of_an_older_version_goes_on_with_a_record_of_ids_from_there(tmp_path, finished):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "chosen.jsonl").unlink()
    made = resumed_from(finished, tmp_path / "run", max_steps=8)
    assert made.state.global_step == 8
    assert [line["step"] for line in untimed(tmp_path / "run" / "chosen.jsonl")] == [5, 6, 7, 8]
    resumed_from(finished, tmp_path / "run", max_steps=8)  # it is cut back to nothing
    assert [line["step"] for line in untimed(tmp_path / "run" / "chosen.jsonl")] == [5, 6, 7, 8]


def test_a_record_of_ids_with_a_hole_is_refused(tmp_path, finished):
    shutil.copytree(finished, tmp_path / "run")
    rows = (tmp_path / "run" / "chosen.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "chosen.jsonl").write_text(rows[0] + rows[2] + rows[3])
    with pytest.raises(CheckpointError, match=r"chosen.jsonl should have a line .* Found 3 lines, of steps 1 to 4"):
        resumed_from(finished, tmp_path / "run")
