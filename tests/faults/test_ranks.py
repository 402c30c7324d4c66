"""Going on with other settings, on other numbers of ranks, and after one of two ranks was killed."""

import shutil

import pytest
from lives import assert_same, final

from training import largest_difference

pytestmark = pytest.mark.slow
TWO = {"per_device_train_batch_size": 2}
"""On two ranks: the large batch of one rank with 4."""


def stopped(whole, folder, step):
    """A copy of a run as it was when it had just saved a checkpoint."""
    shutil.copytree(whole, folder)
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    return folder


@pytest.mark.parametrize("case", ["workers", "by_length", "auto", "colm"])
@pytest.mark.parametrize("step", [3, 9])
def test_in_mid_epoch_it_goes_on_the_same(lives, uninterrupted, tmp_path, case, step):
    whole = uninterrupted(case)
    if case == "workers":  # which keeps two checkpoints
        step = 12
    folder = stopped(whole, tmp_path / "run", step)
    lives.whole(case, folder, resume=True)
    assert_same(final(folder), final(whole))


@pytest.mark.parametrize("was, now, step", [(1, 2, 9), (2, 1, 3), (2, 2, 9)])
def test_on_other_ranks_it_goes_on_with_the_same_rows(lives, uninterrupted, tmp_path, was, now, step):
    batch, whole = {1: {}, 2: TWO}, uninterrupted("float64")
    begun = uninterrupted("float64", world=was, settings=batch[was]) if was > 1 else whole
    folder = stopped(begun, tmp_path / "run", step)
    first, *_ = lives.live("float64", folder, world=now, settings=batch[now], resume=True)
    assert first["code"] == 0, first["log"]
    assert ("not bit for bit" in first["log"]) == (was != now)
    assert_goes_on_like(whole, folder)


def test_on_two_ranks_by_length_it_goes_on_with_the_same_rows(lives, uninterrupted, tmp_path):
    whole = uninterrupted("float64_by_length", world=2, settings=TWO)
    folder = stopped(whole, tmp_path / "run", 9)
    lives.whole("float64_by_length", folder, world=2, settings=TWO, resume=True)
    assert_goes_on_like(whole, folder)


def test_a_large_batch_of_another_size_is_refused(lives, uninterrupted, tmp_path):
    folder = stopped(uninterrupted("float64"), tmp_path / "run", 9)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for outcome in lives.live("float64", folder, world=2, resume=True):
        assert outcome["error"] == "CheckpointError"
        assert (
            "16 = 4 (per_device_train_batch_size) x 2 (gradient_accumulation_steps) x 1 (ranks)" in outcome["message"]
        )
        assert "on 2 ranks, gradient_accumulation_steps=1 fits" in outcome["message"]
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_goes_on_like(whole, folder):
    one, other = final(whole), final(folder)
    for line, its in zip(one["lines"], other["lines"], strict=True):
        for key in ("step", "drawn", "chosen", "pool_examples", "tokens_trained"):
            assert line[key] == its[key]
    assert largest_difference(one["weights"], other["weights"]) < 1e-9
