"""A checkpoint is what its hashes say, nothing in it is run, and it goes on with the model that it was made with."""

import json
import os
import pickle
import shutil

import pytest
import torch
import xxhash
from peft import LoraConfig, get_peft_model

from corebatch.errors import CheckpointError
from corebatch.record.checkpoint import MARKER
from corebatch.trainer import CoresetConfig
from training import Collator, run, tiny_model, trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def made(folder, *model, **settings):
    return trainer(folder, *model, coreset=CoresetConfig(), **{"save_strategy": "steps", "save_steps": 2, **settings})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(made(folder, max_steps=4))
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(folder, *words, checkpoint=True, **settings):
    before = files(folder)
    with pytest.raises(CheckpointError) as caught:
        run(made(folder, max_steps=6, **settings), resume_from_checkpoint=checkpoint)
    assert files(folder) == before
    for word in words:
        assert word in str(caught.value), caught.value
    return str(caught.value)


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


def rewrite(folder, change):
    marker = json.loads((folder / MARKER).read_text())
    change(marker)
    (folder / MARKER).write_text(json.dumps(marker))


def list_again(folder, *names):
    """As somebody would who changes a file and its marker."""

    def change(marker):
        for name in names:
            content = (folder / name).read_bytes()
            marker["files"][name] = {"size": len(content), "xxh3_128": xxhash.xxh3_128(content).hexdigest()}

    rewrite(folder, change)


NAMES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_config.json")


@pytest.mark.parametrize("name", NAMES)
def test_changed_bytes_of_equal_size_are_refused(folder, name):
    flip(folder / "checkpoint-4" / name, at=-40)
    refused(folder, f"checkpoint-4 is damaged: {name} was changed", f"{folder}/checkpoint-2 before it is whole")
    flip(folder / "checkpoint-2" / name, at=-40)
    refused(folder, f"checkpoint-4 is damaged: {name}", "There is no whole checkpoint before it")


def test_the_older_checkpoint_that_is_named_can_be_gone_on_from(folder):
    flip(folder / "checkpoint-4" / "optimizer.pt", at=-40)
    done = run(made(folder, max_steps=6), resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert done.state.global_step == 6


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "rng_state_1.pth", "scaler.pt", "other/adapter_model.safetensors"]
)
def test_a_file_that_would_be_loaded_and_is_not_listed_is_refused(folder, name):
    path = folder / "checkpoint-4" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    refused(folder, f"{name} should not be there", "checkpoint-2 before it is whole")


def test_other_files_may_be_added(folder):
    (folder / "checkpoint-4" / "notes.txt").write_text("looks good")
    (folder / "checkpoint-4" / "ema.pt").write_bytes(b"of a callback")
    assert run(made(folder, max_steps=6), resume_from_checkpoint=True).state.global_step == 6


class Foreign:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def tensors(path, value):
    torch.save({"state": {}, "param_groups": [value]}, path)


def plain(path, value):
    path.write_bytes(pickle.dumps(value))


def old_form(path, value):
    torch.save(value, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("write", [tensors, plain, old_form])
def test_a_foreign_pickle_is_not_run_and_named(folder, tmp_path, name, write):
    path = folder / "checkpoint-4" / name
    write(path, Foreign(tmp_path / "proof"))
    list_again(folder / "checkpoint-4", name)
    message = refused(folder, str(path), f"{folder}/checkpoint-2 before it is whole")
    assert "would call posix.mkdir" in message or "as torch.save writes it" in message
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda marker: marker["files"]["optimizer.pt"].pop("size"), "for 'optimizer.pt'"),
        (lambda marker: marker["files"].update({"optimizer.pt": 7}), "Found 7 for 'optimizer.pt'"),
        (lambda marker: marker["files"].update({"../x": {"size": 1}}), "for '../x'"),
        (lambda marker: marker.update(files=["optimizer.pt"]), "Found list"),
        (lambda marker: marker["files"]["optimizer.pt"].update(size="big"), "'size': 'big'"),
    ],
)
def test_a_marker_that_corebatch_does_not_write(folder, change, found):
    rewrite(folder / "checkpoint-4", change)
    for checkpoint in (True, str(folder / "checkpoint-4")):
        refused(
            folder,
            str(folder / "checkpoint-4"),
            MARKER,
            found,
            "checkpoint-2 before it is whole",
            checkpoint=checkpoint,
        )


def test_a_marker_of_an_earlier_version_goes_on_with_a_word(folder, caplog):
    def earlier(marker):
        for name, about in marker["files"].items():
            digest = about.pop("xxh3_128")
            assert len(digest) == 32
            if name == "trainer_state.json":
                import hashlib

                about["sha256"] = hashlib.sha256((folder / "checkpoint-4" / name).read_bytes()).hexdigest()
        marker["run"] = {
            "model": {key: value for key, value in marker["run"]["model"].items() if key != "weights"},
            "data": {key: marker["run"]["data"][key] for key in ("examples", "hash")},
            "batch": marker["run"]["batch"],
            "settings": {key: marker["run"]["settings"][key] for key in ("seed", "data_seed", "optim")},
        }

    rewrite(folder / "checkpoint-4", earlier)
    assert run(made(folder, max_steps=6), resume_from_checkpoint=True).state.global_step == 6
    assert "written by an earlier version" in caplog.text
    flip(folder / "checkpoint-4" / "trainer_state.json")
    refused(folder, "trainer_state.json was changed", checkpoint=str(folder / "checkpoint-4"))


# ---- the model, its adapters, and what trains them --------------------------------------------------------------


def other_base():
    model = tiny_model()
    frozen = [each for each in model.parameters() if not each.requires_grad]
    with torch.no_grad():
        frozen[3].view(-1)[7] += 0.5  # one number of one weight
    return model


def other_adapter(**changes):
    base = tiny_model(lora=False)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj"], "init_lora_weights": False, **changes}
    return get_peft_model(base, LoraConfig(**settings), autocast_adapter_dtype=False)


def other_config(**changes):
    model = tiny_model()
    model.config.update(changes)
    return model


@pytest.mark.parametrize(
    "model, words",
    [
        (other_base, "the base model's weights were"),
        (lambda: other_adapter(lora_alpha=16), "adapter.default.lora_alpha was 8 and is 16"),
        (lambda: other_adapter(lora_dropout=0.5), "adapter.default.lora_dropout was 0.0 and is 0.5"),
        (lambda: other_adapter(use_rslora=True), "adapter.default.use_rslora was False and is True"),
        (lambda: other_adapter(init_lora_weights=True), "adapter.default.init_lora_weights was False and is True"),
        (lambda: other_adapter(r=8), "adapter.default.r was 4 and is 8"),
        (lambda: other_adapter(target_modules=["q_proj", "v_proj"]), "target_modules was ['v_proj'] and is ['q_proj'"),
        (lambda: other_config(rms_norm_eps=0.1), "model.config.rms_norm_eps was 1e-06 and is 0.1"),
    ],
)
def test_another_model_or_adapter_is_refused_with_what_differs(folder, model, words):
    before = files(folder)
    with pytest.raises(CheckpointError) as caught:
        run(made(folder, model(), max_steps=6), resume_from_checkpoint=True)
    assert words in str(caught.value)
    assert files(folder) == before


class Padded(Collator):
    def __init__(self, pad_to=1):
        self.pad_to = pad_to


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"learning_rate": 1e-3}, "learning_rate was 0.005 and is 0.001"),
        ({"weight_decay": 0.1}, "weight_decay was 0.0 and is 0.1"),
        ({"adam_beta2": 0.9}, "adam_beta2 was 0.999 and is 0.9"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type was 'linear' and is 'cosine'"),
        ({"max_grad_norm": 5.0}, "max_grad_norm was 1.0 and is 5.0"),
        ({"data_collator": Padded(8)}, "collator.class was 'Collator' and is 'Padded'"),
    ],
)
def test_what_trains_it_is_refused_with_what_differs(folder, settings, words):
    refused(folder, words, **settings)


def test_what_may_change_on_the_way(folder):
    free = {"logging_steps": 3, "save_steps": 3, "save_total_limit": 5, "max_steps": 9, "dataloader_num_workers": 1}
    assert run(made(folder, **free), resume_from_checkpoint=True).state.global_step == 9


def test_a_model_is_known_again_after_it_was_saved(folder, tmp_path):
    tiny_model(lora=False).save_pretrained(tmp_path / "base")
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj"], init_lora_weights=False, fan_in_fan_out=False)
    model = get_peft_model(again, settings, autocast_adapter_dtype=False)
    assert run(made(folder, model, max_steps=6), resume_from_checkpoint=True).state.global_step == 6
