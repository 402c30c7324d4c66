"""`corebatch bench step` from the command line."""

import json
import sys

import pytest

from corebatch.cli.main import main

WORDS = ["--large", 8, "--micro-batch", 2, "--ratios", "2", "--max-length", 32, "--steps", 1, "--rounds", 1]
OTHERS = ("default", "first 2 blocks", "window 32", "every 4", "two phase", "remembered", "full, no reuse")
ALONE = [f"{name}=null" for name in OTHERS]


def bench(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["corebatch", "bench", "step", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_bench_step_prints_tables_adds_lines_and_writes_a_report(
    monkeypatch, model_folder, data_file, tmp_path, capsys
):
    output, page = tmp_path / "lines.jsonl", tmp_path / "step.md"
    output.write_text('{"earlier": 1}\n')
    words = [model_folder, *WORDS, "--lengths", data_file, "--adapter", "lora", "--adapter", "full", "--seed", 4]
    words += [word for arm in [*ALONE, "mine={scorer: loss, selector: importance}"] for word in ("--arm", arm)]
    assert not bench(monkeypatch, *words, "--no-random-weights", "--output", output, "--report", page)
    earlier, *lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert earlier == {"earlier": 1}
    assert len(lines) == 2 * (2 + 2 + 4)
    assert {line["adapter"] for line in lines} == {"lora", "full"}
    assert all(line["seed"] == 4 and line["checkpointing"] for line in lines)
    (mine,) = [line for line in lines if line["arm"] == "mine" and line["adapter"] == "lora"]
    assert mine["coreset"]["scorer"] == "loss"
    shown = " ".join(capsys.readouterr().out.split())
    assert "plain_sorted" in shown
    assert "not measured here" in shown
    assert "--seed 4" in page.read_text()
    assert "all weights, float32, with checkpointing" in page.read_text()


@pytest.mark.parametrize(
    "words, message",
    [
        (["llama-11m"], "The model should be one of llama-10m"),
        (["llama-10m", "--ratios", "2;4"], "--ratios should be numbers"),
        (["llama-10m", "--large", 100], "multiple of ratio x micro-batch"),
        (["llama-10m", "--adapter", "lora", "--adapter", "dora"], "adapter should be lora or full. Found 'dora'"),
        (["llama-10m", "--arm", "full"], "An arm should look like"),
        (["llama-10m", "--lengths", "nowhere.jsonl"], "cannot be read"),
        (["llama-10m", "--output", "."], "--output should name a file"),
    ],
)
def test_bad_input_is_one_message_before_anything_runs(monkeypatch, capsys, words, message):
    assert bench(monkeypatch, *words) == 2
    assert message in capsys.readouterr().err
