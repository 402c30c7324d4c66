"""Rows by length, through the Trainer: what each step trains, that all is trained, on how many ranks, and resumed."""

import json
from collections import Counter

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, SequentialSampler

from corebatch.errors import CheckpointError, ConfigError, DataError, InputError
from corebatch.sampling.buckets import row_lengths
from corebatch.trainer import CoresetConfig, CoresetTrainer
from corebatch.trainer.lengths import units_of_epoch
from training import BY_LENGTH, Collator, arguments, mixture, resumed_at, run, same, tiny_model, trainer, weights

GROWING = {"curriculum": "grow_p2", "cycles": 2}


def drawn(folder):
    lines = [json.loads(line) for line in (folder / "chosen.jsonl").read_text().splitlines()]
    return [sorted(line["chosen"] + line["passed"]) for line in lines]


@pytest.mark.parametrize("pool_factor, micro_batches", [(1, "plain"), (1, "positions"), (2, "auto")])
def test_the_rows_of_each_step_are_of_one_bucket(tmp_path, pool_factor, micro_batches):
    coreset = CoresetConfig(by_length=GROWING, pool_factor=pool_factor, micro_batches=micro_batches)
    made = trainer(tmp_path, tiny_model(lora=False), coreset, max_steps=-1, num_train_epochs=2)
    run(made)
    buckets = made._run.lengths
    sampler = made.get_train_dataloader().batch_sampler.sampler
    expected = []
    units = 8 * pool_factor
    for epoch in range(2):
        sampler.set_epoch(epoch)
        own = list(sampler.sampler)
        expected += [sorted(row for unit in own[i : i + units] for row in unit) for i in range(0, len(own), units)]
    rows = drawn(tmp_path)
    assert rows == expected
    assert units_of_epoch(coreset, row_lengths(made.train_dataset), units) == len(sampler)
    assert len(rows) == made.state.max_steps
    assert all(len(set(buckets.of[ids].tolist())) == 1 for ids in rows)
    assert set(Counter(number for ids in rows for number in ids)) == set(range(96))
    lines = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    chosen = [line["chosen_examples"] for line in lines]
    assert chosen == [max(-(-len(ids) // pool_factor), 2) for ids in rows]
    record = json.loads((tmp_path / "corebatch.json").read_text())
    assert record["claimed"].endswith("each step's rows of one length (grow_p2 in 2 cycles an epoch)")


def test_every_row_is_trained_as_the_plain_loss_has_it(tmp_path):
    """The gradient of each step without learning: the mean over the trained tokens of its rows."""
    model = tiny_model(lora=False, dtype=torch.float64)
    made = trainer(
        tmp_path, model, CoresetConfig(by_length={}, pool_factor=1), max_steps=3, learning_rate=0.0, optim="sgd",
        max_grad_norm=0,
    )  # fmt: skip
    found, step = [], made.training_step
    made.training_step = lambda *args: found.append(step(*args)) or found[-1]
    run(made)
    dataset = mixture()
    for place, ids in enumerate(drawn(tmp_path)):
        batch = Collator()([dict(dataset[number]) for number in ids])
        batch.pop("source", None)
        expected = model(**batch).loss.item()
        assert float(sum(found[2 * place : 2 * place + 2])) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("pool_factor", [1, 2])
def test_resumed_is_uninterrupted(tmp_path, pool_factor):
    coreset = CoresetConfig(by_length=GROWING, pool_factor=pool_factor)
    settings = {"max_steps": 11, "save_strategy": "steps", "save_steps": 3}

    def made(folder):
        return trainer(folder, tiny_model(dropout=0.1, lora=False), coreset, **settings)

    whole = run(made(tmp_path / "whole"))
    for step in (3, 9):
        killed, resumed = resumed_at(step, tmp_path / "whole", made)
        assert same(weights(whole), weights(resumed))
        assert drawn(killed) == drawn(tmp_path / "whole")
    other = trainer(tmp_path / "whole", None, CoresetConfig(by_length={}, pool_factor=pool_factor), **settings)
    with pytest.raises(CheckpointError, match=r"by_length was .*grow_p2"):
        run(other, resume_from_checkpoint=True)


@pytest.mark.parametrize("ranks, micro_batch, accumulation", [(2, 4, 1), (2, 2, 2), (4, 2, 1)])
def test_every_split_of_the_large_batch_has_the_same_steps(tmp_path, monkeypatch, ranks, micro_batch, accumulation):
    monkeypatch.setattr("accelerate.data_loader.synchronize_rng_states", lambda *_: None)
    made = trainer(tmp_path, None, CoresetConfig(by_length={}, pool_factor=1), max_steps=2)
    sampler = made.get_train_dataloader().batch_sampler.sampler
    plain = DataLoader(list(sampler), batch_size=micro_batch, sampler=range(len(sampler)), collate_fn=list)
    loaders = [
        prepare_data_loader(plain, num_processes=ranks, process_index=rank, put_on_device=False)
        for rank in range(ranks)
    ]
    assert {len(loader) for loader in loaders} == {len(sampler) // 8 * accumulation}
    parts = zip(*loaders, strict=True)
    assert [unit for batches in parts for batch in batches for unit in batch] == list(sampler)


class Sequential(CoresetTrainer):
    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(mixture())


@pytest.mark.parametrize(
    "block, settings, error, message",
    [
        ({}, BY_LENGTH, ConfigError, "coreset.by_length decides on the order.*Found 'group_by_length'"),
        ({}, {"train_dataset": Stream()}, ConfigError, "Found a stream"),
        ({"column": "tokens"}, {}, DataError, "in the column 'tokens'. Found the columns"),
        ({"longest": 4}, {}, InputError, "longer than 4"),
    ],
)
def test_what_it_does_not_go_with_is_an_error_when_the_trainer_is_made(tmp_path, block, settings, error, message):
    with pytest.raises(error, match=message):
        trainer(tmp_path, None, CoresetConfig(by_length=block), **settings)


def test_other_orders_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="both decide on the order"):
        CoresetConfig(by_length={}, sampling={"temperature": 0})
    made = Sequential(
        model=tiny_model(), args=arguments(tmp_path), train_dataset=mixture(), data_collator=Collator(),
        coreset=CoresetConfig(by_length={}),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"coreset.by_length decides on which rows come"):
        run(made)


def test_torch_data_sets_and_what_the_log_says(tmp_path, caplog):
    rows = [dict(row) for row in mixture()]
    with caplog.at_level("WARNING"):
        run(trainer(tmp_path, None, CoresetConfig(by_length={"leftovers": "drop"}), train_dataset=rows, max_steps=2))
    assert "in buckets of at most so many tokens" in caplog.text
    assert "do not come in an epoch" in caplog.text
    assert int(row_lengths(rows).max()) > 1
