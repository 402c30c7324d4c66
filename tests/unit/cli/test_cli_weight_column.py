"""`coreset.weight_column` on the command line: what a row counts reaches its loss."""

import json
import sys
from pathlib import Path

import pytest

from corebatch.cli.main import main


def run(monkeypatch, config, path, column, *more):
    words = ["--datasets", f"[{{path: {path}}}]", "--coreset.weight_column", column, "--max_steps", "1"]
    monkeypatch.setattr(sys, "argv", ["corebatch", "train", str(config), *words, *more])
    try:
        main()
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}", "weight": float(i % 2)} for i in range(32)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_weight_zero_are_not_chosen(monkeypatch, config, settings, path):
    assert not run(monkeypatch, config, path, "weight", "--coreset.pool_factor", "2")
    folder = Path(settings["output_dir"])
    assert "rows weighed by weight" in json.loads((folder / "corebatch.json").read_text())["claimed"]
    chosen = json.loads((folder / "chosen.jsonl").read_text().splitlines()[0])
    ids = next(value for value in chosen.values() if isinstance(value, list))
    assert ids
    assert all(number % 2 for number in ids)


def test_a_column_that_no_file_has_is_named(monkeypatch, config, path, capsys):
    assert run(monkeypatch, config, path, "worth") == 2
    assert "coreset.weight_column names 'worth', which none of the first" in " ".join(capsys.readouterr().err.split())
