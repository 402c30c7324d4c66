"""What runs wrote before the code was rearranged, and have to write still: `golden.jsonl` has their lines.

`PYTHONPATH=tests python tests/invariants/test_golden.py` writes that file anew: after a change that is meant to change
choices, alone.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from corebatch.trainer import CoresetConfig
from training import run, tiny_model, trainer, weights

GOLDEN = Path(__file__).with_name("golden.jsonl")
OF_THE_MACHINE = ("ms", "seconds", "memory_mb", "mfu", "bytes_sent", "seconds_at_peak")
CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
RUNS = {
    "default": ({}, {}),
    "full": ({"scoring": "full"}, {}),
    "balanced": ({"selector": "balanced", "loss": "example_mean"}, {}),
    "optimizer": ({"normalise": "optimizer", "scoring": "full"}, {}),
    "random": ({"selector": "random", "small_sources": "auto"}, {}),
    "hard": ({"scorer": "loss", "selector": "hard"}, {}),
    "sizes": ({"scorer": "tokens", "selector": "importance"}, {"num_train_epochs": 1, "max_steps": -1}),
    "window": ({"scoring": {"way": "window", "tokens": 6}}, {}),
    "first_blocks": ({"scoring": {"way": "first_blocks", "blocks": 1}}, {}),
    "every": ({"scoring": {"way": "every", "steps": 2}}, {}),
    "two_phase": ({"scoring": {"way": "two_phase", "proxy": "norm"}, "pool_factor": 4}, {}),
    "remembered": ({"scoring": "remembered"}, {}),
    "remembered_scored": ({"scoring": {"way": "remembered", "unknown": "score", "max_age": 3}}, {"max_steps": 8}),
    "remembered_guess": ({"scoring": {"way": "remembered", "unknown": "guess"}}, {"max_steps": 8}),
    "packed": ({"padding_free": True, "scoring": "full"}, {}),
    "tracked": ({"track_error": 2, "scoring": "full"}, {}),
    "reused": ({"scoring": {"way": "full", "reuse": True}}, CHECKPOINTING),
}
COLM = "colm"


def lines_of(name, folder):
    """What a run of four steps wrote, and a number of the weights that it ended with."""
    coreset, settings = RUNS.get(name, ({}, {}))
    made = CoresetConfig.colm() if name == COLM else CoresetConfig(**coreset)
    ended = run(trainer(folder, tiny_model(dtype=torch.float64), made, **{"max_steps": 4, **settings}))
    found = []
    for file in ("selection.jsonl", "chosen.jsonl"):
        found += [json.loads(line) for line in (folder / file).read_text().splitlines()]
    return [_rounded(line) for line in found] + [_rounded(sum(float(w.abs().sum()) for w in weights(ended).values()))]


def _rounded(value):
    """Without what depends on the machine; numbers to six digits, so that processors that add otherwise agree."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in OF_THE_MACHINE}
        return {key: _rounded(each) for key, each in kept.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("name", [*RUNS, COLM])
def test_a_run_writes_what_it_wrote(tmp_path, name):
    expected = {line["run"]: line["lines"] for line in map(json.loads, GOLDEN.read_text().splitlines())}[name]
    found = lines_of(name, tmp_path)
    assert json.dumps(found) == json.dumps(expected)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, GOLDEN.open("w") as file:
        for name in [*RUNS, COLM]:
            print(json.dumps({"run": name, "lines": lines_of(name, Path(folder) / name)}), file=file)
            print(name, file=sys.stderr)
