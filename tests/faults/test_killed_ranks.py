"""Going on with other settings, on other numbers of ranks, and after one of two ranks was killed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cases import NEW
from lives import assert_same, environment, final

from corebatch.record.checkpoint import last_complete
from training import largest_difference

pytestmark = pytest.mark.slow
resumes_ranks_on_cpu = pytest.mark.skipif(
    not NEW, reason="transformers 4.57 asks torch for the optimizer's state on cpu:0, which torch does not know"
)
TWO = {"per_device_train_batch_size": 2}
"""On two ranks: the large batch of one rank with 4."""
BOUND = 20
"""Seconds after which a rank gives up waiting for the other."""


def stopped(whole, folder, step):
    """A copy of a run as it was when it had just saved a checkpoint."""
    shutil.copytree(whole, folder)
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    return folder


@pytest.mark.parametrize("case, step", [("workers", 12), ("by_length", 9), ("by_length", 3), ("auto", 9), ("colm", 3)])
def test_in_mid_epoch_it_goes_on_the_same(lives, uninterrupted, tmp_path, case, step):
    whole = uninterrupted(case)
    folder = stopped(whole, tmp_path / "run", step)
    lives.whole(case, folder, resume=True)
    assert_same(final(folder), final(whole))


@resumes_ranks_on_cpu
@pytest.mark.parametrize("was, now, step", [(1, 2, 9), (2, 1, 3), (2, 2, 9)])
def test_on_other_ranks_it_goes_on_with_the_same_rows(lives, uninterrupted, tmp_path, was, now, step):
    batch, whole = {1: {}, 2: TWO}, uninterrupted("float64")
    begun = uninterrupted("float64", world=was, settings=batch[was]) if was > 1 else whole
    folder = stopped(begun, tmp_path / "run", step)
    first, *_ = lives.live("float64", folder, world=now, settings=batch[now], resume=True)
    assert first["code"] == 0, first["log"]
    assert ("not bit for bit" in first["log"]) == (was != now)
    assert_goes_on_like(whole, folder)


@resumes_ranks_on_cpu
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


@resumes_ranks_on_cpu
@pytest.mark.parametrize("rank, moment", [(1, 8), (0, 6)])
def test_when_one_of_two_ranks_is_killed_the_other_ends_too(lives, uninterrupted, tmp_path, rank, moment):
    whole, folder = uninterrupted("float64"), tmp_path / "run"
    kill = {"run": rank, "delay": 0.02}
    settings = {**TWO, "ddp_timeout": BOUND}
    outcomes = lives.live("float64", folder, world=2, settings=settings, moment=moment, kill=kill, seconds=60)
    assert outcomes[rank]["code"] == -9
    survivor = outcomes[1 - rank]
    assert (survivor["code"], survivor["error"]) == (3, "RankError"), survivor
    named = f"for want of rank {rank}, last seen at step" if rank else "rank 0 is gone"  # it keeps the store
    assert named in survivor["message"]
    assert survivor["seconds"] < 2 * BOUND
    lives.whole("float64", folder, world=2, settings=TWO, resume=True)
    assert_goes_on_like(whole, folder)


@resumes_ranks_on_cpu
def test_under_torchrun_one_of_two_ranks_is_killed(lives, uninterrupted, tmp_path):
    run = {"case": "float64", "folder": str(tmp_path / "run"), "settings": TWO, "result": str(tmp_path / "run-0.json")}
    killed = run | {"moment": 8, "event": 1, "killed_rank": 1}
    assert torchrun(killed) != 0
    assert last_complete(tmp_path / "run").name == "checkpoint-6"
    lives.whole("float64", tmp_path / "run", world=2, settings=TWO, resume=True)
    assert_goes_on_like(uninterrupted("float64"), tmp_path / "run")


def torchrun(run):
    """The exit code of a run's two ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(Path(__file__).with_name("cases.py")), json.dumps(run)]
    return subprocess.run(command, env=environment(), capture_output=True, timeout=120).returncode


def assert_goes_on_like(whole, folder):
    one, other = final(whole), final(folder)
    for line, its in zip(one["lines"], other["lines"], strict=True):
        for key in ("step", "drawn", "chosen", "pool_examples", "tokens_trained"):
            assert line[key] == its[key]
    assert largest_difference(one["weights"], other["weights"]) < 1e-9
