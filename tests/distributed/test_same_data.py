"""Ranks that read other data, or have other settings, are refused before the first step, by name."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))
from lives import Lives

TWO = {"per_device_train_batch_size": 2, "ddp_timeout": 60, "max_steps": 3}


@pytest.fixture(scope="module")
def lives():
    made = Lives()
    yield made
    made.close()


def two(lives, tmp_path, other, **settings):
    """The outcomes of two ranks of which the second has other settings."""
    ranks = {1: {"settings": {**TWO, **settings, **other}}}
    return lives.live("recommended", tmp_path / "run", world=2, settings={**TWO, **settings}, seconds=60, ranks=ranks)


PLAIN = {"coreset": {"pool_factor": 1}}
STREAM = {"stream": True}
CASES = {
    "fewer rows": ({"rows": 80}, {}, "train_dataset: examples 96, hash '"),
    "other texts": ({"rows_seed": 1}, {}, "train_dataset: hash '"),
    "other texts, plain": ({"rows_seed": 1}, PLAIN, "train_dataset: hash '"),
    "another base model": ({"other_base": True}, {}, "model: weights '"),
    "another seed": ({"seed": 5}, {}, "settings: seed 3 on rank 0 and seed 5 on rank 1"),
    "another rate": ({"learning_rate": 1.0}, PLAIN, "settings: learning_rate 0.005 on rank 0 and learning_rate 1.0"),
    "other steps": ({"max_steps": 4}, {}, "length: max_steps '3' on rank 0 and max_steps '4' on rank 1"),
    "another choice": ({"coreset": {"seed": 9}}, {"coreset": {}}, "coreset: seed 0 on rank 0 and seed 9 on rank 1"),
    "other held-out rows": ({"eval_rows": 7}, {"eval_rows": 8}, "eval_dataset: examples 8, content '"),
    "another stream": ({"rows_seed": 1}, STREAM, "Found another row 0 on rank 1 (digest "),
    "another stream, read by workers": (
        {"rows_seed": 1},
        {**STREAM, "dataloader_num_workers": 1},
        "Found another row 0 on rank 1",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_ranks_that_do_not_train_the_same_are_refused(lives, tmp_path, case):
    other, settings, words = CASES[case]
    outcomes = two(lives, tmp_path, other, **settings)
    assert [outcome["error"] for outcome in outcomes] == ["DataError", "DataError"], outcomes
    for outcome in outcomes:
        assert words in outcome["message"], outcome["message"]
        assert "rank 0" in outcome["message"]
        assert "rank 1" in outcome["message"]
    log = tmp_path / "run" / "selection.jsonl"
    assert not log.exists() or log.read_text() == ""


@pytest.mark.parametrize("settings", [{}, PLAIN, STREAM, {**STREAM, "dataloader_num_workers": 1}, {"eval_rows": 8}])
def test_ranks_that_train_the_same_are_not(lives, tmp_path, settings):
    for outcome in two(lives, tmp_path, {"dataloader_num_workers": 1} if settings == {} else {}, **settings):
        assert (outcome["code"], outcome["steps"]) == (0, 3), outcome
