"""A run resumed after its first epoch draws that epoch's order, with whatever loader the Trainer goes on."""

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from corebatch.sampling.epochs import EpochSampler, follow_epochs


def loader(ranks=1, rank=0):
    data = list(range(24))
    made = DataLoader(data, batch_size=4 // ranks, sampler=RandomSampler(data))
    return prepare_data_loader(
        made, num_processes=ranks, process_index=rank, put_on_device=False, use_seedable_sampler=True, data_seed=7
    )


def batches(made):
    return [batch.tolist() for batch in made]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """What the loader would tell other ranks stays here."""
    monkeypatch.setattr("accelerate.data_loader.synchronize_rng_states", lambda *_: None)


@pytest.mark.parametrize("ranks, rank", [(1, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize("told", ["first", "second", "both"], ids="told_{}".format)
def test_a_resumed_epoch_has_its_own_order(ranks, rank, told):
    whole = loader(ranks, rank)
    whole.set_epoch(2)
    expected = batches(whole)
    resumed = loader(ranks, rank)
    follow_epochs(resumed, lambda: 2)
    if told in ("first", "both"):
        resumed.set_epoch(2)
    rest = skip_first_batches(resumed, 2)
    if told in ("second", "both"):
        rest.set_epoch(2)
    assert batches(rest) == expected[2:]
    whole.set_epoch(0)
    assert batches(whole) != expected


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_uninterrupted_run_keeps_its_order(ranks):
    plain, followed = loader(ranks), loader(ranks)
    follow_epochs(followed, lambda: 0)  # a Trainer that is behind holds nobody back
    for epoch in range(3):
        plain.set_epoch(epoch)
        followed.set_epoch(epoch)
        assert batches(plain) == batches(followed)


def test_other_samplers_stay_as_they_are():
    data = list(range(8))
    for made in (DataLoader(data, sampler=SequentialSampler(data)), DataLoader(data, shuffle=True), object()):
        before = getattr(getattr(made, "batch_sampler", None), "sampler", None)
        follow_epochs(made, lambda: 3)
        assert getattr(getattr(made, "batch_sampler", None), "sampler", None) is before


def test_the_sampler_tells_its_length():
    made = loader()
    follow_epochs(made, lambda: 0)
    assert isinstance(made.batch_sampler.sampler, EpochSampler)
    assert len(made.batch_sampler.sampler) == 24
    assert torch.utils.data.BatchSampler(made.batch_sampler.sampler, 5, False).__len__() == 5
