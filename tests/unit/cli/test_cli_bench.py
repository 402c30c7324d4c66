"""`corebatch bench gradients` on a tiny model."""

import json
import sys

import pytest

from corebatch.cli.main import main


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
    assert "last_layer x pivotal" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "run").exists()
