"""Who is missing, as a rank whose collective failed, or that waits long, reads it from the store."""

from __future__ import annotations

import logging
import time

import pytest
import torch

from corebatch.distributed import heartbeat as presence
from corebatch.distributed.heartbeat import Presence
from corebatch.errors import DataError, RankError

BROKEN = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")


class Store(dict):
    def set(self, key, value):
        self[key] = value.encode()

    def get(self, key):
        return self[key]

    def check(self, keys):
        return all(key in self for key in keys)


class Gone(Store):
    def check(self, keys):
        raise torch.distributed.DistNetworkError("refused")


@pytest.fixture(autouse=True)
def no_grace(monkeypatch):
    monkeypatch.setattr(presence, "GRACE", 0.2)


def ranks(count, store=None, timeout=60.0):
    store = Store() if store is None else store
    return [Presence(index, count, timeout, store) for index in range(count)]


def test_the_rank_that_has_come_less_far_is_named():
    zero, one, two = ranks(3)
    for rank in (zero, one, two):
        rank.at(4, "loading")
    zero.at(4, "choosing")
    two.at(4, "choosing")
    told = zero.explain(BROKEN)
    assert isinstance(told, RankError)
    assert "At choosing of step 4 rank 0 could not go on, for want of rank 1, last seen at step 4, loading" in str(told)
    assert "Connection closed by peer" in str(told)
    assert "rank 2" not in str(told)


def test_a_rank_that_was_never_there_is_named():
    zero, _ = ranks(2)
    zero.at(1, "choosing")
    assert "for want of rank 1, never seen" in str(zero.explain(BROKEN))


def test_a_failure_of_another_rank_s_own_is_told():
    zero, one = ranks(2)
    for rank in (zero, one):
        rank.at(2, "training")
    own = DataError("a damaged row")
    assert one.explain(own) is own
    told = str(zero.explain(BROKEN))
    assert "for want of rank 1, which failed at step 2, training: DataError: a damaged row" in told


def test_where_all_say_the_same_it_is_the_network():
    zero, one = ranks(2)
    for rank in (zero, one):
        rank.at(2, "training")
    one.explain(BROKEN)
    assert "every other rank says the same: the network" in str(zero.explain(BROKEN))


def test_without_the_store_rank_zero_is_gone():
    zero, _ = ranks(2, Gone())
    zero.at(2, "training")
    assert "rank 0 is gone" in str(zero.explain(BROKEN))


def test_what_all_ranks_raise_stays_as_it_is():
    zero, _ = ranks(2)
    told = RankError("choosing failed on rank 1")
    assert zero.explain(told) is told
    alone = Presence()
    alone.at(1, "loading")
    assert alone.explain(BROKEN) is BROKEN


@pytest.mark.parametrize("behind", [True, False])
def test_a_long_wait_is_told_once(caplog, behind):
    zero, one = ranks(2, timeout=0.4)
    one.at(3, "loading")
    zero.at(3, "loading")
    if behind:
        zero.at(3, "choosing")
    with caplog.at_level(logging.WARNING, "corebatch.distributed.heartbeat"):
        zero.watch()
        time.sleep(0.8)
        zero.close()
    (record,) = caplog.records
    assert record.levelno == (logging.ERROR if behind else logging.WARNING)
    waits = "It waits for rank 1 (last seen at step 3, loading" if behind else "So has every other"
    assert waits in record.getMessage()
