"""What makes a run the same run, and what a checkpoint of another one says."""

import copy
import logging
from pathlib import Path

import datasets
import pytest
import torch

from corebatch.errors import CheckpointError
from corebatch.record.checkpoint import rotate
from corebatch.record.data_identity import describe_data
from corebatch.record.model_identity import describe_model
from corebatch.record.run_identity import (
    check_same_run,
    describe_run,
    large_batch,
    note_versions,
)
from corebatch.sampling.tags import tag
from corebatch.sources import small_candidates
from training import mixture, tiny_model, trainer

FOLDER = Path("run/checkpoint-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = trainer(tmp_path_factory.mktemp("run"))
    return describe_run(made, made.model, made.train_dataset, tag(made.train_dataset, "source")[1])


def other(run, **groups):
    changed = copy.deepcopy(run)
    for group, values in groups.items():
        changed[group] |= values
    return changed


def test_the_same_run_goes_on(run, caplog):
    check_same_run(FOLDER, run, copy.deepcopy(run))
    assert not caplog.text


@pytest.mark.parametrize(
    "groups, message",
    [
        ({"model": {"parameters": 7, "hash": "x"}}, "model was class PeftModel.*, parameters 7, .* and is class Peft"),
        ({"data": {"examples": 95}}, "train_dataset was examples 95, .* and is examples 96"),
        ({"settings": {"seed": 9}}, "another run's.*: seed was 9 and is 3"),
        ({"settings": {"data_seed": 1}}, "data_seed was 1 and is None"),
        ({"settings": {"optim": "sgd"}}, "optim was 'sgd' and is 'adamw_torch"),
        ({"settings": {"train_sampling_strategy": "group_by_length"}}, "was 'group_by_length' and is 'random'"),
        (
            {"batch": {"ranks": 3}},
            r"large batch of 48 = .* 3 \(ranks\).* on 1 ranks, gradient_accumulation_steps=6 fits",
        ),
        ({"batch": {"gradient_accumulation_steps": 4}}, "on 1 ranks, gradient_accumulation_steps=4 fits"),
        ({"batch": {"per_device_train_batch_size": 1, "ranks": 3}}, "no whole number of them fits"),
    ],
)
def test_another_run_is_refused_with_what_differs(run, groups, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        check_same_run(FOLDER, other(run, **groups), run)
    assert str(FOLDER) in str(caught.value)


@pytest.mark.parametrize("found", [None, {}, {"model": 3}, {"model": {}, "data": {}, "settings": {}, "batch": {}}])
def test_a_checkpoint_that_does_not_say_whose_it_is(run, found):
    with pytest.raises(CheckpointError, match="should say which run wrote it"):
        check_same_run(FOLDER, found, run)


def test_other_ranks_with_the_same_large_batch_are_told_what_that_means(run, caplog):
    two = other(run, batch={"ranks": 2, "per_device_train_batch_size": 2})
    assert large_batch(two["batch"]) == large_batch(run["batch"]) == 16
    check_same_run(FOLDER, two, run)
    assert "not bit for bit" in caplog.text


def test_by_length_the_stretch_of_rows_must_stay(run):
    by_length = {"train_sampling_strategy": "group_by_length"}
    two = other(run, batch={"ranks": 2, "per_device_train_batch_size": 2}, settings=by_length)
    with pytest.raises(CheckpointError, match=r"stretches of .* = 4 rows\. Found 8"):
        check_same_run(FOLDER, two, other(run, settings=by_length))


def test_a_model_is_known_by_names_shapes_types_and_what_is_trained():
    one = describe_model(tiny_model())
    assert one == describe_model(tiny_model())
    full = describe_model(tiny_model(lora=False))
    assert full["trained_parameters"] == full["parameters"] > one["trained_parameters"]
    others = [describe_model(tiny_model(dtype=torch.float64)), describe_model(tiny_model("phi")), full]
    assert len({found["hash"] for found in [one, *others]}) == 4


def data(dataset):
    return describe_data(dataset, tag(dataset, "source")[1])


def test_data_are_known_by_number_sources_and_a_few_rows(tmp_path):
    rows = mixture().to_list()
    one = data(mixture())
    assert one == data(datasets.Dataset.from_list(rows))
    mixture().save_to_disk(tmp_path / "data")
    assert one == data(datasets.load_from_disk(tmp_path / "data"))  # in another form, of another fingerprint
    assert one == data(mixture().with_format("torch"))
    shuffled = mixture().shuffle(seed=1)
    renamed = [{**row, "source": "logic"} if i == 1 else row for i, row in enumerate(rows)]
    changed = [{**row, "input_ids": [9, *row["input_ids"][1:]]} if i == 95 else row for i, row in enumerate(rows)]
    others = [data(mixture(95)), data(shuffled), data(datasets.Dataset.from_list(renamed))]
    others.append(data(datasets.Dataset.from_list(changed)))
    assert len({found["hash"] for found in [one, *others]}) == 5


class Random(torch.utils.data.Dataset):
    """Rows that are made anew each time."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"input_ids": torch.randint(3, 40, (6,)).tolist(), "source": "a"}


def test_rows_of_a_data_set_that_makes_them_are_not_read():
    state = torch.get_rng_state()
    made = tag(Random(), "source")[1]
    torch.set_rng_state(state)
    assert describe_data(Random(), made) == describe_data(Random(), made)
    assert torch.equal(state, torch.get_rng_state())
    assert small_candidates(made.counts, made.names, "auto") == frozenset()


def test_a_stream_is_known_by_nothing():
    assert describe_data(iter(()), None) == {"examples": None, "hash": None}


def test_other_versions_are_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        note_versions(FOLDER, {"torch": "1.0", "gone": "2"})
    assert "torch 1.0 to" in caplog.text
    assert "gone 2 to None" in caplog.text


@pytest.mark.parametrize(
    "complete, incomplete, current, limit, best, left",
    [
        ((4, 8, 12), (), 12, None, None, {4, 8, 12}),
        ((4, 8, 12), (), 12, 5, None, {4, 8, 12}),
        ((4, 8, 12), (), 12, 2, None, {8, 12}),
        ((4, 8, 12), (), 12, 1, None, {12}),
        ((4, 8, 12), (), 12, 1, 4, {4, 12}),  # the best, and the one to go on from
        ((4, 8, 12), (), 12, 2, 4, {4, 12}),
        ((4, 8, 12), (), 12, 1, 12, {12}),
        ((4, 12), (8,), 12, 2, None, {4, 12}),  # an incomplete one pushes out no complete one
        ((4, 12), (8, 16), 12, 2, None, {4, 12}),
        ((4, 8, 20), (), 8, 2, None, {4, 8}),  # the run went back: what it had left of later steps goes first
    ],
)
def test_which_checkpoints_are_deleted(tmp_path, complete, incomplete, current, limit, best, left):
    for number in complete + incomplete:
        (tmp_path / f"checkpoint-{number}").mkdir()
    for number in complete:
        (tmp_path / f"checkpoint-{number}" / "corebatch_state.json").write_text("{}")
    (tmp_path / "checkpoint-best").mkdir()
    folder = tmp_path / f"checkpoint-{current}"
    rotate(tmp_path, folder, limit, None if best is None else str(tmp_path / f"checkpoint-{best}"))
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {f"checkpoint-{number}" for number in left} | {"checkpoint-best"}
