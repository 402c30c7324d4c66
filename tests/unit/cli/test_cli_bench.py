"""`corebatch bench gradients` on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from corebatch.cli.main import main

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def tables(path):
    """The lines of the Markdown table that benchmarks/tables.py prints."""
    command = [sys.executable, str(BENCHMARKS / "tables.py"), "gradients", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in printed if line.startswith("|")]


def test_bench_gradients_prints_a_table_and_writes_lines(monkeypatch, config, settings, tmp_path, capsys):
    output = tmp_path / "lines.jsonl"
    words = ["bench", "gradients", config, "--pair", "tokens x importance", "--pair", "last_layer x pivotal"]
    words += ["--moments", "0,2", "--population", 40, "--large", 16, "--budgets", "8,4", "--draws", 6]
    monkeypatch.setattr(sys, "argv", ["corebatch", *map(str, words), "--output", str(output), "--seed", "4"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == 2 * 2 * (1 + 2)  # pairs, budgets, metrics: Adam's only after a step
    assert {line["metric"] for line in lines if line["after_steps"] == 0} == {"raw"}
    assert all(line["seed"] == 4 and line["draws"] == 6 and line["hardware"] for line in lines)
    assert output.with_suffix(".png").stat().st_size > 1000
    assert (tmp_path / "lines-frontier.png").stat().st_size > 1000
    assert "last_layer x pivotal" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "run").exists()


def test_bench_gradients_measures_ways_at_given_cost_ratios(monkeypatch, config, tmp_path, capsys):
    output = tmp_path / "lines.jsonl"
    words = ["bench", "gradients", config, "--pair", "last_layer x balanced @ window(tokens=4)"]
    words += ["--pair", "last_layer x balanced @ remembered(age=1, known=0.5)", "--cost-ratio", "2.85,3.6"]
    words += ["--moments", "2", "--population", 40, "--large", 16, "--budgets", "4", "--draws", 4, "--output", output]
    words += ["--cost-rows", 6, "--cost-rounds", 2]
    monkeypatch.setattr(sys, "argv", ["corebatch", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [list(line["cost_ratios"]) for line in lines] == [["2.85", "3.6"]] * 4
    assert {(line["cost_rows"], line["cost_rounds"]) for line in lines} == {(6, 2)}
    assert {line["scoring"] for line in lines} == {"window(tokens=4)", "remembered(age=1, known=0.5)"}
    assert "c = 3.6" in " ".join(capsys.readouterr().out.split())
    printed = tables(output)
    assert "4: effective over 1 | worth" in printed[0]
    assert len({line.count("|") for line in printed}) == 1
    assert len(printed) == 2 + 2  # Adam's metric


def test_bench_gradients_reads_methods_from_a_file(monkeypatch, config, tmp_path):
    output, methods = tmp_path / "lines.jsonl", tmp_path / "methods.yaml"
    methods.write_text(
        "methods:\n- tokens x importance\n- {name: published, coreset: {recipe: colm}}\n"
        "- name: small kept\n  coreset: {selector: pivotal, small_sources: [rare]}\n"
    )
    words = ["bench", "gradients", config, "--methods", methods, "--pair", "all={recipe: colm, small_sources: none}"]
    words += ["--moments", "2", "--population", 40, "--large", 16, "--budgets", "8", "--draws", 3, "--warm-up", 1]
    monkeypatch.setattr(sys, "argv", ["corebatch", *map(str, words), "--output", str(output), "--cost-rounds", "1"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    lines = {line["method"]: line for line in map(json.loads, output.read_text().splitlines())}
    assert list(lines) == ["all", "tokens x importance", "published", "small kept"]
    assert lines["published"]["kept"] > lines["all"]["kept"] == 0
    assert lines["small kept"]["kept"] > 0
    assert lines["published"]["warm_up"] == 1
    assert lines["small kept"]["coreset"]["small_sources"] == ["rare"]
    assert {line["sources"] for line in lines.values()} == {4}


def test_tables_of_lines_from_before_the_ways_of_scoring(tmp_path):
    common = {"large": 8, "population": 16, "draws": 2, "seed": 0, "commit": "c75bea9", "time": "2026-11-22T03:39:19"}
    common |= {"hardware": {"machine": "x86_64", "cpu_cores": 2, "torch_threads": 1, "gpu": None}}
    common |= {"versions": {"torch": "2.13.0", "transformers": "5.23.0"}, "after_steps": 10, "metric": "adam"}
    numbers = ("error_to_large", "error_spread", "effective_batch", "effective_batch_uncorrected", "bias_share")
    line = {**common, "method": "tokens x random", "budget": 4, **dict.fromkeys((*numbers, "length", "cosine"), 0.25)}
    (tmp_path / "old.jsonl").write_text(json.dumps(line) + "\n")
    title, _, row = tables(tmp_path / "old.jsonl")
    assert title.endswith("| bias | length | cosine |")
    assert row == "| 10 | 4 | tokens x random | 0.25 ± 0.25 | 0.25 | 0.25 | 25 % | 0.25 | 0.25 |"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--cost-ratio", "fast"], "--cost-ratio should be numbers"),
        (["--objective", "tokens,sorces"], "one of tokens, sources. Found 'sorces'"),
        (["--warm-up", "-1"], "--warm-up should not be negative"),
        (["--methods", "nowhere.yaml"], "no config file nowhere.yaml"),
        (["--pair", "a={recipe: colm, small_sources: some}"], "small_sources should be 'auto'"),
        (["--cost-ratio", "2.85,1"], "above 1"),
        (["--pair", "last_layer x balanced @ windo"], "Did you mean 'window'"),
        (["--pair", "last_layer x balanced @ first_blocks(blocks=2)"], "below the number of blocks of the model, 2"),
    ],
)
def test_bad_input_is_said_in_a_sentence(monkeypatch, config, capsys, words, message):
    sizes = ["--moments", "0", "--population", "20", "--large", "8", "--budgets", "4", "--draws", "2"]
    monkeypatch.setattr(sys, "argv", ["corebatch", "bench", "gradients", str(config), *sizes, *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code
    said = capsys.readouterr()
    text = " ".join((said.out + said.err).split())
    assert message in text
    assert "Traceback" not in text
