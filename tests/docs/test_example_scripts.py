"""Example scripts run from end to end."""

import json
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_optimizer_in_backward(tmp_path):
    loss = runpy.run_path(str(EXAMPLES / "optimizer_in_backward.py"))["main"](str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    assert len(lines) == 60
    assert {(line["pool_examples"], line["chosen_examples"]) for line in lines} == {(32, 8)}
    assert loss < 3.3 < lines[0]["train_loss"]  # from ln 64 = 4.2


@pytest.mark.filterwarnings("ignore")
def test_dual_encoder(tmp_path):
    pytest.importorskip("sentence_transformers")
    ranks = runpy.run_path(str(EXAMPLES / "dual_encoder.py"))["main"](str(tmp_path))
    assert 0.5 < ranks["random"] < ranks["ngame"] < 1
    assert len(list((tmp_path / "ngame" / "clusters").iterdir())) == 7
