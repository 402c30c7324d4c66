"""The command line end to end, in this process: train, resume, report, validate, env."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from corebatch.cli.main import main


def corebatch(monkeypatch, *words):
    """Exit code of `corebatch words...`."""
    monkeypatch.setattr(sys, "argv", ["corebatch", *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return 0 if stop.code is None else stop.code
    return 0


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_train_leaves_a_whole_run(monkeypatch, config, settings, capsys):
    assert corebatch(monkeypatch, "train", config, "--coreset.scoring", "full") == 0
    run = Path(settings["output_dir"])
    for name in (
        "adapter_model.safetensors", "adapter_config.json", "trainer_state.json", "tokenizer.json", "README.md",
        "selection.jsonl", "corebatch.json", "report.html", "checkpoint-4/optimizer.pt", "checkpoint-4/rng_state.pth",
        "checkpoint-4/corebatch_state.json", "checkpoint-4/corebatch_state.safetensors",
    ):  # fmt: skip
        assert (run / name).is_file(), name
    lines = [json.loads(line) for line in (run / "selection.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert (line["pool_examples"], line["chosen_examples"]) == (16, 8)
        assert sum(line["drawn"].values()) == 16
        assert sum(line["chosen"].values()) == 8
        assert {"load", "score", "exchange", "select", "repack", "train", "optimizer"} == set(line["ms"])
        assert line["tokens_scored"] > line["tokens_trained"] > 0
        assert line["pool_loss"] > 0
    record = json.loads((run / "corebatch.json").read_text())
    assert record["sources"]["rare"] == {"examples": 6, "share": 6 / 80, "small": False}
    card = (run / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "peft"
    assert head["base_model"] == settings["model_name_or_path"]
    for words in ("cube", "last_layer", "rare: 6 examples", "Trained for the mean over trained tokens."):
        assert words in card
    out = capsys.readouterr().out
    assert "pool" in out
    assert "report.html" in out


def test_what_is_scored_is_told_everywhere(monkeypatch, config, settings, capsys):
    said = "nothing: label_counts is known without a forward"
    again = ("--max_steps", "-1", "--num_train_epochs", "2", "--coreset.selector", "cube")
    assert corebatch(monkeypatch, "validate", config, "--fast", *again) == 0
    assert "nothing: rows are chosen by what training taught" in " ".join(capsys.readouterr().out.split())
    steps = ("--max_steps", "2")
    assert corebatch(monkeypatch, "validate", config, "--fast", *steps) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    assert corebatch(monkeypatch, "train", config, *steps) == 0
    assert f"Scored: {said}." in " ".join(capsys.readouterr().out.split())
    run = Path(settings["output_dir"])
    record = json.loads((run / "corebatch.json").read_text())
    assert (record["scored"], record["coreset"]["scoring"]) == (said, "auto")
    lines = [json.loads(line) for line in (run / "selection.jsonl").read_text().splitlines()]
    assert [(line["scoring"], line["tokens_scored"]) for line in lines] == [("none", 0)] * 2
    assert f"Scored: {said}." in (run / "README.md").read_text().replace("\\_", "_")
    assert said in (run / "report.html").read_text()


def test_the_same_config_trains_the_same_weights_and_resuming_goes_on(monkeypatch, config, settings, tmp_path):
    assert corebatch(monkeypatch, "train", config) == 0
    other = ["--output_dir", tmp_path / "other"]
    assert corebatch(monkeypatch, "train", config, *other, "--max_steps", 2, "--lr_scheduler_type", "constant") == 0
    assert corebatch(monkeypatch, "train", config, "--output_dir", tmp_path / "again") == 0
    first, again = (
        load_file(Path(d) / "adapter_model.safetensors") for d in (settings["output_dir"], tmp_path / "again")
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    # a run is killed after step 2 of 4 and goes on
    run = tmp_path / "again"
    (run / "checkpoint-4" / "corebatch_state.json").unlink()
    assert corebatch(monkeypatch, "train", config, "--output_dir", run, "--resume_from_checkpoint", "true") == 0
    resumed = load_file(run / "adapter_model.safetensors")
    assert all(torch.equal(first[key], resumed[key]) for key in first)
    assert len((run / "selection.jsonl").read_text().splitlines()) == 4


def test_full_fine_tuning_and_plain_training(monkeypatch, config, settings, tmp_path):
    full = ["--output_dir", tmp_path / "full", "--use_peft", "false"]
    assert corebatch(monkeypatch, "train", config, *full) == 0
    assert (tmp_path / "full" / "model.safetensors").is_file()
    plain = ["--output_dir", tmp_path / "plain", "--coreset.pool_factor", 1]
    assert corebatch(monkeypatch, "train", config, *plain) == 0
    assert (tmp_path / "plain" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "plain" / "selection.jsonl").exists()


def test_held_out_data_is_evaluated_at_the_end(monkeypatch, config, settings, data_file):
    words = ["--eval_datasets", f"[{{path: {data_file}}}]"]
    assert corebatch(monkeypatch, "train", config, *words) == 0
    results = json.loads((Path(settings["output_dir"]) / "eval_results.json").read_text())
    assert results["eval_loss"] > 0


def test_keeping_small_sources_is_told(monkeypatch, config, settings, caplog):
    assert corebatch(monkeypatch, "train", config, "--coreset.small_sources", "auto") == 0
    assert "changes the mixture" in caplog.text
    assert "rare" in caplog.text
    record = json.loads((Path(settings["output_dir"]) / "corebatch.json").read_text())
    assert "rare" in record["method_note"]


def test_report_is_made_again(monkeypatch, config, settings, capsys):
    corebatch(monkeypatch, "train", config)
    page = Path(settings["output_dir"]) / "report.html"
    page.unlink()
    assert corebatch(monkeypatch, "report", settings["output_dir"]) == 0
    assert "rare" in page.read_text()


def test_validate_trains_and_writes_nothing(monkeypatch, config, settings, tmp_path, capsys):
    before = files(tmp_path)
    assert corebatch(monkeypatch, "validate", config, "--coreset.small_sources", "auto") == 0
    assert files(tmp_path) == before
    out = " ".join(capsys.readouterr().out.split())
    for words in ("rare", "large batch (drawn a step) 16", "small batch (trained a step) 8", "steps an epoch 5",
                  "steps in all 4", "activations of 4 x", "together, MB", "kept whole rare"):  # fmt: skip
        assert words in out, (words, out)


def test_env_names_versions(monkeypatch, capsys):
    assert corebatch(monkeypatch, "env") == 0
    assert torch.__version__.split("+")[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["--pool_factr", "2"], "unknown key 'pool_factr'"),
        (["--learning_rat", "1"], "Did you mean 'learning_rate'?"),
        (["--coreset.pool_factr", "2"], "Did you mean 'pool_factor'?"),
        (["--coreset.pool_factor", "0"], "pool_factor should be an integer of at least 1. Found 0"),
        (["--coreset.selector", "pivotl"], "Did you mean 'pivotal'?"),
        (["--coreset.scorer", "zeroth_order", "--coreset.scorer_options", "{eps: 1}"], "Found 'eps'"),
        (["--coreset.normalise", "adam"], "goes with uniform selectors"),
        (["--coreset.source_column", "origin"], "origin"),
        (["--learning_rate", "fast"], "learning_rate should be float. Found 'fast'"),
        (["--max_length", "long"], "max_length should be int"),
        (["--dtype", "int8"], "dtype should be one of"),
        (["--datasets", "[{path: nowhere.jsonl}]"], "nowhere.jsonl"),
        (["--datasets", "[{file: x}]"], "file"),
        (["--model_name_or_path", "./nowhere"], "./nowhere"),
        (["--lora_target_modules", "[no_such_projection]"], "no_such_projection"),
        (["--train_sampling_strategy", "batch_rebalance"], "batch_rebalance"),
        (["--label_smoothing_factor", "0.1"], "label_smoothing_factor"),
        (["stray"], "Expected `--key value`"),
    ],
)
def test_bad_settings_are_one_message_and_nothing_is_written(monkeypatch, config, settings, words, message, capfd):
    assert corebatch(monkeypatch, "train", config, *words) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (Path(settings["output_dir"]) / "selection.jsonl").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "compl\n', "line 2"),
        ("", "train.jsonl"),
        ('{"question": "a", "reply": "b"}\n', "question"),
        ('{"prompt": "a", "completion": null}\n', "line 1"),
    ],
    ids=["broken line", "empty file", "missing columns", "null"],
)
def test_bad_data_is_one_message_with_its_place(monkeypatch, config, data_file, text, message, capfd):
    data_file.write_text(text)
    for command in ("train", "validate"):
        assert corebatch(monkeypatch, command, config) == 2
        error = capfd.readouterr().err
        assert message in error
        assert "train.jsonl" in error
        assert "Traceback" not in error


def test_a_folder_that_holds_something_is_refused(monkeypatch, config, settings, capfd):
    run = Path(settings["output_dir"])
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    assert corebatch(monkeypatch, "train", config) == 2
    assert "not empty" in capfd.readouterr().err
    assert files(run) == {"notes.txt": b"mine"}


def test_nothing_to_resume_from(monkeypatch, config, capfd):
    assert corebatch(monkeypatch, "train", config, "--resume_from_checkpoint", "true") == 2
    assert "complete checkpoint" in capfd.readouterr().err


@pytest.mark.parametrize("text, message", [("a: [1", "line"), ("- 1", "keys and values"), (None, "no config file")])
def test_bad_config_files(monkeypatch, tmp_path, text, message, capfd):
    path = tmp_path / "bad.yaml"
    if text is not None:
        path.write_text(text)
    assert corebatch(monkeypatch, "validate", path) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "bad.yaml" in error


def test_report_of_nothing(monkeypatch, tmp_path, capfd):
    assert corebatch(monkeypatch, "report", tmp_path / "none") == 2
    assert "none" in capfd.readouterr().err
