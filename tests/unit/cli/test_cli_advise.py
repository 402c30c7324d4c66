"""`corebatch advise`: measures on the config's own model and data, and writes a config that `validate` takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from corebatch.bench.advise.advice import read_advice
from corebatch.bench.advise.checkpoints import check_model, load_trained_weights
from corebatch.bench.advise.probe import checkpoint_folders, make_probe
from corebatch.config.settings import settings_from
from corebatch.record.checkpoint import MARKER
from probes import advised_config


def test_advice_is_shown_and_written_and_its_config_is_valid(
    corebatch: Callable[..., tuple[Any, str, str]], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(advised_config(tmp_path)))
    code, out, err = corebatch("advise", config, "--minutes", "0.2", "--per_device_train_batch_size", "8")
    assert code == 0, err
    assert "What limits this run" in out
    folder = tmp_path / "run-advice"
    found = read_advice(folder)
    assert found.config["per_device_train_batch_size"] == 8
    assert {"time of a step", "memory", "padding"} <= {finding.lever for finding in found.findings}
    assert found.about["closing"] in out
    assert not (tmp_path / "run").exists()
    code, out, err = corebatch("validate", folder / "recommended.yaml")
    assert code == 0, err
    assert "The first step was made" in out
    code, out, err = corebatch("advise", config, "--minutes", "0.2")
    assert code == 2
    assert "has advice.json already, and nothing is overwritten" in err


@pytest.mark.parametrize(
    ("keys", "ours"),
    [({}, False), ({"lora_r": 2}, False), ({"lora_r": 2, "coreset": {"micro_batches": "positions"}}, True)],
    ids=["full", "lora", "lora, ours"],
)
def test_checkpoints_that_train_wrote_are_of_the_config(
    corebatch: Callable[..., tuple[Any, str, str]], tmp_path: Path, keys: dict[str, Any], ours: bool
) -> None:
    values = advised_config(tmp_path, save_steps=2, max_steps=2, save_strategy="steps", **keys)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    code, _, err = corebatch("train", config)
    assert code == 0, err
    probe = make_probe(settings_from(values, "the test"))
    (folder,) = checkpoint_folders(tmp_path / "run")
    assert (folder / MARKER).exists() == ours
    check_model(folder, probe.model, probe.tokenizer)
    assert load_trained_weights(probe.model, folder) > 0.9


def test_what_is_asked_wrongly_is_said_before_anything_is_read(
    corebatch: Callable[..., tuple[Any, str, str]], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(advised_config(tmp_path)))
    for words, told in (
        (("--minutes", "0"), "--minutes should be above 0. Found 0.0."),
        (("--checkpoints", tmp_path / "none"), "--checkpoints should be a folder with checkpoint-N folders"),
        (("--output", config), "should go into a folder. Found the file"),
        (("--coreset.pool_factor", "0"), "coreset.pool_factor should be an integer of at least 1"),
    ):
        code, _, err = corebatch("advise", config, *words)
        assert code == 2
        assert told in err
    assert not (tmp_path / "run-advice").exists()
