"""QLoRA by the command line, with the keys of TRL's ModelConfig."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from corebatch.bench.advise.costs import measure
from corebatch.bench.advise.probe import make_probe
from corebatch.cli.main import main
from corebatch.config.settings import load_settings

HERE = importlib.util.find_spec("bitsandbytes") is not None
FOUR_BITS = ["--load_in_4bit", "--bnb_4bit_compute_dtype", "bfloat16", "--use_bnb_nested_quant"]


def corebatch(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["corebatch", *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.skipif(not HERE, reason="the extra `qlora` is not installed")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("more", [[], ["--gradient_checkpointing"]], ids=["plain", "checkpointing"])
def test_four_bits_are_trained_through(monkeypatch, config, settings, more):
    faster = ["--max_steps", "12", "--learning_rate", "2e-2"]
    faster += ["--coreset.scoring", "{way: remembered, unknown: score}"]
    assert corebatch(monkeypatch, "train", config, *FOUR_BITS, *faster, *more) == 0
    run = Path(settings["output_dir"])
    losses = [json.loads(line)["pool_loss"] for line in (run / "selection.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]  # later epochs are chosen from memory
    assert losses[-1] < losses[0] - 0.05
    adapters = load_file(run / "adapter_model.safetensors")
    assert any(value.abs().max() > 0 for name, value in adapters.items() if "lora_B" in name)


def test_validate_predicts_less_memory(monkeypatch, config, capsys):
    found = []
    for words in ([], FOUR_BITS):
        assert corebatch(monkeypatch, "validate", config, *words) == 0
        out = " ".join(capsys.readouterr().out.split())
        found.append(float(out.split("weights, MB ")[1].split()[0]))
    assert found[1] < found[0]


@pytest.mark.skipif(not HERE, reason="the extra `qlora` is not installed")
def test_advice_is_had_of_packed_weights(config):
    found = {finding.lever: finding for finding in measure(make_probe(load_settings(config, FOUR_BITS), seconds=60))}
    assert found["time of a step"].numbers["step_seconds"] > 0
    assert found["memory"].numbers["measured_mb"] > 0


def test_without_bitsandbytes_the_extra_is_named(monkeypatch, config, settings, capfd):
    usual = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else usual(name, *a)
    )
    assert corebatch(monkeypatch, "train", config, "--load_in_4bit") == 2
    assert "corebatch[qlora]" in capfd.readouterr().err
    assert not (Path(settings["output_dir"]) / "selection.jsonl").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--load_in_4bit", "--use_peft", "false"], "load_in_4bit freezes the model's weights"),
        (["--bnb_4bit_quant_type", "fp4"], "bnb_4bit_quant_type should stand beside load_in_4bit"),
        (["--load_in_4bit", "--bnb_4bit_quant_type", "int4"], "bnb_4bit_quant_type should be one of 'nf4', 'fp4'"),
    ],
)
def test_what_cannot_be_meant_is_refused(monkeypatch, config, words, message, capfd):
    assert corebatch(monkeypatch, "train", config, *words) == 2
    assert message in capfd.readouterr().err
