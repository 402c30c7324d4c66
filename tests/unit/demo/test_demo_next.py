"""The demo's page ends with commands that run as they stand."""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from corebatch.bench.runs.from_config import Parts
from corebatch.cli.main import main
from corebatch.config.settings import load_settings
from corebatch.config.values import read_values
from corebatch.demo import DemoSettings, MixtureFiles
from corebatch.demo.next_steps import write_next
from folders import save_tiny_model


@pytest.fixture
def files(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train", "heldout"):
        row = {"prompt": "1 + 1?", "completion": " 2", "source": "sums"}
        (tmp_path / "data" / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return MixtureFiles(
        train=tmp_path / "data" / "train.jsonl",
        heldout=tmp_path / "data" / "heldout.jsonl",
        train_counts={"sums": 1},
        heldout_per_source=1,
    )


@pytest.fixture
def commands(files, tmp_path):
    found = write_next(tmp_path, tmp_path / "model", files, DemoSettings())
    assert json.loads((tmp_path / "next.json").read_text()) == {"commands": found}
    return [shlex.split(each["command"]) for each in found]


def test_the_first_does_what_it_says(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "model")
    first, _ = write_next(tmp_path, tmp_path / "model", files, replace(DemoSettings(), steps=2))
    turns = [{"prompt": f"{n}?", "completion": f" {n}", "source": "mine"} for n in range(40)]
    Path("YOUR.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turns))
    monkeypatch.setattr(sys, "argv", [*shlex.split(first["command"]), "--use_cpu", "true"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert Path("runs/mine/adapter_model.safetensors").is_file()
    lines = Path("runs/mine/selection.jsonl").read_text().splitlines()
    assert [json.loads(line)["drawn"] for line in lines] == [{"mine": 16}] * 2


def test_the_first_trains_on_rows_of_the_users_own(commands, tmp_path):
    program, name, config, *given = commands[0]
    assert (program, name, Path(config)) == ("corebatch", "train", tmp_path / "config.yaml")
    settings, demo_settings = load_settings(Path(config), given), DemoSettings()
    assert settings.data.datasets[0].path == "YOUR.jsonl"
    assert settings.training["output_dir"] == "runs/mine"
    assert settings.coreset.pool_factor == demo_settings.pool_factor
    assert settings.model.lora_target_modules == list(demo_settings.lora_target_modules)
    for key in ("learning_rate", "warmup_steps", "seed"):
        assert settings.training[key] == getattr(demo_settings, key)
    assert settings.training["max_steps"] == demo_settings.steps


def test_the_second_compares_with_plain_training(commands, tmp_path):
    _, name, config, *given = commands[1]
    parts = Parts.of(*read_values(Path(config), given))
    assert name == "compare"
    assert [arm.name for arm in parts.arms] == [
        f"{method}@wall_clock" for method in ("coreset", "plain_small", "plain_large")
    ]
    assert parts.settings.data.eval_datasets[0].path == str(tmp_path / "data" / "heldout.jsonl")
    assert parts.settings.training["output_dir"] == f"{tmp_path}-comparison"
    assert parts.own.seeds == (1, 2, 3)
