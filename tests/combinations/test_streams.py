"""Streams in one process: of torch and of `datasets`, with and without workers of the loader."""

import json
from multiprocessing import active_children

import pytest
import torch

from corebatch.errors import ConfigError, DataError
from corebatch.trainer import CoresetConfig
from corebatch.types import ID, SOURCE
from training import SOURCES, Collator, mixture, run, same, tiny_model, trainer, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork.*:DeprecationWarning"  # Python 3.12's, for loader workers
)


class Stream(torch.utils.data.IterableDataset):
    """Rows in order; of several workers each takes its share."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return iter(self.rows[first::every])


def lines(folder):
    return [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]


def stream_of(kind, count=96):
    rows = mixture(count)
    return Stream(list(rows)) if kind == "torch" else rows.to_iterable_dataset(num_shards=4)


KINDS = pytest.mark.parametrize("kind", ["torch", "datasets"])


@KINDS
def test_a_stream_trains_what_the_same_rows_in_order_train(tmp_path, kind):
    if not _sequential():
        pytest.skip("this transformers has no sequential sampling to compare with")
    scored = CoresetConfig(scoring="full")
    rows = run(trainer(tmp_path / "rows", None, scored, train_sampling_strategy="sequential"))
    made = run(trainer(tmp_path / "stream", None, scored, train_dataset=stream_of(kind)))
    assert same(weights(rows), weights(made))
    for one, other in zip(lines(tmp_path / "rows"), lines(tmp_path / "stream"), strict=True):
        for key in ("drawn", "chosen", "pool_loss", "tokens_scored", "tokens_trained"):
            assert one[key] == other[key]


def _sequential():
    from transformers import TrainingArguments

    return hasattr(TrainingArguments, "train_sampling_strategy")


@KINDS
@pytest.mark.parametrize("workers", [1, 2])
def test_with_workers_every_row_is_drawn_once(tmp_path, kind, workers):
    made = trainer(tmp_path, train_dataset=stream_of(kind), dataloader_num_workers=workers)
    batches = list(made.get_train_dataloader())
    assert len({int(number) for batch in batches for number in batch[ID]}) == 96
    sources = torch.cat([batch[SOURCE] for batch in batches])
    expected = [mixture(96)["source"].count(name) for name in SOURCES]
    assert sorted(torch.unique(sources, return_counts=True)[1].tolist()) == sorted(expected)
    assert made._run.method.feedback.examples == 0  # nothing is kept of rows that never come again
    lengths = torch.cat([batch["attention_mask"].sum(dim=1) for batch in batches])
    assert sorted(lengths.tolist()) == sorted(map(len, mixture(96)["input_ids"]))
    run(made)
    assert [(line["pool_examples"], line["chosen_examples"]) for line in lines(tmp_path)] == [(16, 8)] * 6


def test_workers_end_with_training(tmp_path):
    made = trainer(tmp_path, train_dataset=stream_of("torch"), dataloader_num_workers=2, max_steps=2)
    run(made)
    assert active_children() == []


@KINDS
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_is_uninterrupted(tmp_path, kind, workers):
    """Also where the stream begins anew, after six steps."""

    def made():
        return trainer(
            tmp_path, None, CoresetConfig(scoring="full"), train_dataset=stream_of(kind), max_steps=9,
            dataloader_num_workers=workers, save_strategy="steps", save_steps=4,
        )  # fmt: skip

    whole = run(made())
    first = lines(tmp_path)
    again = made()
    run(again, resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(weights(whole), weights(again))
    kept = ("drawn", "chosen", "pool_loss", "chosen_loss")
    assert [[line[key] for key in kept] for line in first] == [[line[key] for key in kept] for line in lines(tmp_path)]


def test_a_shuffled_stream_of_datasets_is_shuffled_anew_in_each_epoch(tmp_path):
    stream = mixture(32).to_iterable_dataset(num_shards=2).shuffle(seed=3, buffer_size=32)
    lengths = []

    class Watching(Collator):
        def __call__(self, rows):
            lengths.extend(len(row["input_ids"]) for row in rows)
            return super().__call__(rows)

    run(trainer(tmp_path, train_dataset=stream, max_steps=4, data_collator=Watching()))
    assert sorted(lengths[:32]) == sorted(lengths[32:64])
    assert lengths[:32] != lengths[32:64]


def test_evaluation_on_a_stream(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 3, "extra": {"eval_dataset": mixture(16, seed=7)}}
    alone = run(trainer(tmp_path / "alone", train_dataset=stream_of("datasets")))
    made = run(trainer(tmp_path / "evaluated", train_dataset=stream_of("datasets"), **settings))
    assert same(weights(alone), weights(made))


def test_pool_factor_one_is_plain_training(tmp_path):
    found = [
        run(
            trainer(
                tmp_path / str(plain), tiny_model(), CoresetConfig(pool_factor=1), plain=plain, max_steps=3,
                train_dataset=mixture(96, source=False).to_iterable_dataset(),
            )
        )
        for plain in (True, False)
    ]  # fmt: skip
    assert same(*map(weights, found))


@KINDS
def test_nothing_of_a_stream_is_scored_by_default(tmp_path, kind):
    run(trainer(tmp_path, train_dataset=stream_of(kind), max_steps=8))
    assert [(line["scoring"], line["tokens_scored"]) for line in lines(tmp_path)] == [("none", 0)] * 8


@KINDS
def test_a_stream_needs_max_steps(tmp_path, kind):
    with pytest.raises(ConfigError, match="max_steps"):
        trainer(tmp_path, train_dataset=stream_of(kind), max_steps=-1)


@pytest.mark.parametrize("scoring", ["every", {"way": "remembered", "unknown": "score"}])
def test_nothing_is_remembered_of_a_stream(tmp_path, scoring):
    with pytest.raises(ConfigError, match="on a stream"):
        trainer(tmp_path, None, CoresetConfig(scoring=scoring), train_dataset=stream_of("datasets"))


@pytest.mark.parametrize("scoring", ["none", "window", {"way": "two_phase", "share": 0.75}])
def test_ways_of_scoring_without_a_memory(tmp_path, scoring):
    run(trainer(tmp_path, None, CoresetConfig(scoring=scoring), train_dataset=stream_of("datasets"), max_steps=3))
    assert [line["chosen_examples"] for line in lines(tmp_path)] == [8, 8, 8]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_row_of_a_stream_is_named(tmp_path, workers):
    rows = list(mixture(96))
    rows[20]["input_ids"][0] = 999
    made = trainer(tmp_path, train_dataset=Stream(rows), dataloader_num_workers=workers)
    with pytest.raises(DataError, match="Found 999 in examples 20 "):
        run(made)
    assert made.state.global_step == 1
