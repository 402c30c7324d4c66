"""A tiny model with a byte-level tokenizer in a folder, a mixture in JSONL, and a config that trains in seconds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from corebatch.cli.main import main
from folders import save_tiny_model

QUESTIONS = {"sums": 30, "names": 24, "colours": 20, "rare": 6}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder)
    return folder


@pytest.fixture
def corebatch(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """Exit code, standard output on one line, and standard error of `corebatch words...`."""

    def run(*words: Any) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["corebatch", *map(str, words)])
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = 0 if stop.code is None else stop.code
        out, err = capfd.readouterr()
        return code, " ".join(out.split()), err

    return run


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    rows = [
        {"prompt": f"{source} {n}?", "completion": f"{n * 7 % 13}", "source": source}
        for source, count in QUESTIONS.items()
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def settings(model_folder: Path, data_file: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model_folder),
        "datasets": [{"path": str(data_file)}],
        "output_dir": str(tmp_path / "run"),
        "lora_r": 4,
        "lora_target_modules": ["v_proj"],
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "learning_rate": "5e-3",
        "save_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
        "seed": 1,
        "coreset": {"pool_factor": 2},
    }


@pytest.fixture
def config(settings: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
