"""The column that names sources may have another name, or there may be none."""

import json
import sys
from pathlib import Path

import pytest

from corebatch.cli.main import main


@pytest.mark.parametrize(
    "column, drawn", [("topic", {"a", "b"}), ("none", {"sums"}), ("source", {"sums"})], ids=["topic", "none", "source"]
)
def test_sources_are_those_of_the_column(monkeypatch, config, settings, tmp_path, column, drawn):
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}", "topic": "ab"[i % 2]} for i in range(32)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--datasets", f"[{{path: {path}}}]", "--coreset.source_column", column, "--max_steps", "1"]
    monkeypatch.setattr(sys, "argv", ["corebatch", "train", str(config), *words])
    try:
        main()
    except SystemExit as stop:
        assert not stop.code  # noqa: PT017
    line = json.loads((Path(settings["output_dir"]) / "selection.jsonl").read_text().splitlines()[0])
    assert set(line["drawn"]) == drawn
