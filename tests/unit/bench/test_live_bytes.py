"""Bytes that live at one time, on steps whose bytes can be counted by hand."""

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from corebatch.bench.live_bytes import LiveBytes

KIB = 1024  # of float32: 256 numbers


def test_peak_counts_what_lives_together_and_freed_storages_leave():
    with LiveBytes() as live:
        one = torch.zeros(256)
        two = one + 1
        assert live.live_bytes == 2 * KIB
        del one
        assert live.live_bytes == KIB
        three = two * 2
        assert (live.live_bytes, live.peak_bytes) == (2 * KIB, 2 * KIB)
        del two, three
    assert (live.live_bytes, live.peak_bytes) == (0, 2 * KIB)


def test_views_and_operations_in_place_count_nothing():
    with LiveBytes() as live:
        one = torch.zeros(256)
        view = one.view(16, 16)[3:].t()
        view.add_(1)
        del one
        assert live.live_bytes == live.peak_bytes == KIB  # the view keeps the whole storage


def test_what_no_operation_made_counts_from_its_first_use():
    given = torch.from_numpy(np.zeros(256, dtype=np.float32))
    with LiveBytes() as live:
        assert live.live_bytes == 0
        total = given.sum()
        assert live.live_bytes == KIB + total.nbytes


def test_tracked_tensors_count_once():
    weights = torch.zeros(256, requires_grad=True)
    live = LiveBytes()
    live.track([weights, weights, "no tensor", None])
    with live:
        made = weights * 2
        assert live.live_bytes == 2 * KIB
    del made
    assert live.live_bytes == KIB
    live.reset_peak()
    assert live.peak_bytes == KIB


def test_a_resized_storage_is_counted_anew():
    with LiveBytes() as live:
        one = torch.zeros(256)
        one.untyped_storage().resize_(2 * KIB)
        one.add_(1)
        assert live.live_bytes == 2 * KIB


@pytest.mark.parametrize("layers", [1, 5])
def test_backward_is_counted(layers):
    """exp saves its result: before backward the input and `layers` results live; gradients come on top of them."""
    given = torch.zeros(256, requires_grad=True)
    with LiveBytes() as live:
        hidden = given
        for _ in range(layers):
            hidden = hidden.exp()
        assert live.live_bytes == (1 + layers) * KIB
        hidden.backward(torch.ones(256))
        del hidden
        assert live.live_bytes == 2 * KIB  # input and its gradient
    assert live.peak_bytes >= (3 + layers) * KIB


def block(hidden):
    for _ in range(10):
        hidden = hidden.tanh()
    return hidden


def test_checkpointing_lowers_the_peak():
    def peak(recompute):
        given = torch.zeros(256, requires_grad=True)
        with LiveBytes() as live:
            hidden = given
            for _ in range(6):
                hidden = checkpoint(block, hidden, use_reentrant=False) if recompute else block(hidden)
            hidden.sum().backward()
        return live.peak_bytes

    assert peak(False) > 6 * 10 * KIB
    assert peak(True) < (6 + 10 + 5) * KIB  # the blocks' inputs, one block, and what is at work


def test_a_leak_free_loop_stays_level():
    weight = torch.zeros(16, 16, requires_grad=True)
    optimizer = torch.optim.AdamW([weight])
    with LiveBytes() as live:
        levels = []
        for _ in range(5):
            (weight @ torch.ones(16)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            levels.append(live.live_bytes)
    assert len(set(levels)) == 1
    assert levels[0] >= 3 * weight.nbytes  # weight, two moments
