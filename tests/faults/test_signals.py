"""SIGTERM and SIGHUP finish the step and save; what was there before them is there again."""

import json
import os
import signal
import threading

import pytest
from lives import assert_same, final

from corebatch.distributed.ranks import Ranks
from corebatch.record.checkpoint import last_complete
from corebatch.trainer import CoresetConfig
from corebatch.trainer.stop_signals import Stopped, StopSignals
from training import run, trainer

TWO = {"per_device_train_batch_size": 2, "ddp_timeout": 60}


@pytest.mark.parametrize("name, code", [("SIGTERM", "143"), ("SIGHUP", "129")])
@pytest.mark.parametrize("case", ["recommended", "workers"])
def test_a_signal_finishes_the_step_and_saves(lives, uninterrupted, tmp_path, case, name, code):
    folder = tmp_path / "run"
    (outcome,) = lives.live(case, folder, moment=5, kill={"run": 0, "signal": name})
    assert (outcome["error"], outcome["message"]) == ("Stopped", code), outcome
    reached = len((folder / "selection.jsonl").read_text().splitlines())
    assert 5 <= reached <= 7
    assert last_complete(folder).name == f"checkpoint-{reached}"
    assert f"{name}: step {reached} of 14 is finished and saved in {folder}/checkpoint-{reached}" in outcome["log"]
    assert "resume_from_checkpoint" in outcome["log"]
    lives.whole(case, folder, resume=True)
    assert_same(final(folder), final(uninterrupted(case)))


@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_stop_at_the_same_step(lives, tmp_path, rank):
    folder = tmp_path / "run"
    outcomes = lives.live(
        "recommended", folder, world=2, settings=TWO, seconds=50, kill={"run": rank, "signal": "SIGTERM"},
        ranks={rank: {"moment": 5}},
    )  # fmt: skip
    assert [(outcome["error"], outcome["message"]) for outcome in outcomes] == [("Stopped", "143")] * 2, outcomes
    reached = len((folder / "selection.jsonl").read_text().splitlines())
    assert last_complete(folder).name == f"checkpoint-{reached}"
    for outcome in lives.live("recommended", folder, world=2, settings=TWO, resume=True):
        assert (outcome["code"], outcome["steps"]) == (0, 14), outcome


def test_nothing_is_saved_by_strategy_and_yet_at_a_signal(lives, tmp_path):
    settings = {"save_strategy": "no"}
    (outcome,) = lives.live(
        "recommended", tmp_path / "run", settings=settings, moment=4, kill={"run": 0, "signal": "SIGTERM"}
    )
    assert outcome["message"] == "143"
    step = json.loads((last_complete(tmp_path / "run") / "trainer_state.json").read_text())["global_step"]
    assert 4 <= step <= 6


def forked(child):
    """The code that a child process ends with."""
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_second_signal_ends_at_once():
    def child():
        with StopSignals(Ranks()).listening():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(7)

    assert forked(child) == -signal.SIGTERM


def test_a_loaders_process_lives_through_the_first_and_ends_by_the_second():
    def once():
        os.kill(os.getpid(), signal.SIGTERM)

    def twice():
        once()
        once()

    with StopSignals(Ranks()).listening():
        assert forked(once) == 0
        assert forked(twice) == -signal.SIGTERM


def test_a_handler_from_before_is_called_and_comes_back():
    told = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    mine = signal.getsignal(signal.SIGTERM)
    try:
        listener = StopSignals(Ranks())
        with listener.listening():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # nohup
            os.kill(os.getpid(), signal.SIGTERM)
        assert told == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is mine
        with pytest.raises(Stopped) as stopped:
            listener.leave(3, 5, "run/checkpoint-3")
        assert stopped.value.code == 143
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("pool_factor", [1, 2])
def test_handlers_are_as_before_after_training_and_none_are_set_in_a_thread(tmp_path, pool_factor):
    before, found = signal.getsignal(signal.SIGTERM), []
    made = trainer(tmp_path, coreset=CoresetConfig(pool_factor=pool_factor), max_steps=1)
    thread = threading.Thread(target=lambda: found.append(run(made)))
    thread.start()
    thread.join()
    assert found[0].state.global_step == 1
    assert signal.getsignal(signal.SIGTERM) is before
    run(made)
    assert signal.getsignal(signal.SIGTERM) is before
