"""Two ranks over gloo: the mean of what they train together is what is claimed."""

import json
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("claimed_on_ranks.py")
CASES = [
    {"objective": "sources", "drawing": "skewed", "weighted": True},
    {"objective": "shares", "drawing": "as in the data", "chosen": "cube", "lora": True},
    {"objective": "sources", "drawing": "as in the data", "chosen": "all rows"},
]


@pytest.mark.slow
def test_the_mean_of_what_two_ranks_train_is_what_is_claimed(forks, tmp_path):
    codes = forks.run(WORKER, tmp_path, world=2, cases=CASES, seeds=4, steps=16)
    assert not any(codes), "".join(path.read_text()[-6000:] for path in sorted(tmp_path.glob("*.log")))
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    for each in found:
        assert each["error"] < 2.5 * each["standard"] + 1e-6
        assert each["power"] > 2.5
    assert found[-1]["standard"] < 1e-12  # whole passes
