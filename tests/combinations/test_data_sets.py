"""Data sets, loaders and collators of every kind train as they do plainly, or are refused by name."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset
from transformers import Trainer

from corebatch.errors import ConfigError, DataError
from corebatch.trainer import CoresetConfig, CoresetTrainer
from training import BY_LENGTH, Collator, mixture, run, same, tiny_model, trainer, weights

pytestmark = pytest.mark.usefixtures("one_thread")
ONE = CoresetConfig(pool_factor=1)
ROWS = mixture(64, source=False)


class Mapped(torch.utils.data.Dataset[Any]):
    def __init__(self, rows: Any = ROWS) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return {key: list(value) for key, value in self.rows[index].items()}


class Streamed(torch.utils.data.IterableDataset[Any]):
    def __init__(self, rows: Any = ROWS) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter([self.rows[i] for i in range(len(self.rows))])


class SizedStream(Streamed):
    def __len__(self) -> int:
        return len(self.rows)


class Pairs(Mapped):
    def __getitem__(self, index: int) -> Any:
        row = self.rows[index]
        return row["input_ids"], row["labels"]


def of_pairs(rows: Any) -> Any:
    return Collator()([{"input_ids": ids, "labels": labels} for ids, labels in rows])


TEXTS = Dataset.from_list([{"text": " ".join(map(str, row["input_ids"]))} for row in ROWS])


def tokenized(batch: Any) -> Any:
    ids = [[int(word) for word in text.split()] for text in batch["text"]]
    return {"input_ids": ids, "labels": [list(row) for row in ids]}


STREAM = ROWS.to_iterable_dataset(num_shards=4)
DATA: dict[str, tuple[Any, dict[str, Any]]] = {
    "transform": (lambda: TEXTS.with_transform(tokenized), {"remove_unused_columns": False}),
    "transform of some columns": (
        lambda: TEXTS.add_column("other", [1] * 64).with_transform(tokenized, columns=["text"]),
        {"remove_unused_columns": False},
    ),
    "torch format": (lambda: ROWS.with_format("torch"), {}),
    "map style": (Mapped, {}),
    "pairs": (Pairs, {"data_collator": of_pairs}),
    "subset": (lambda: torch.utils.data.Subset(ROWS, range(0, 64, 2)), {}),
    "subset of a transform": (
        lambda: torch.utils.data.Subset(TEXTS.with_transform(tokenized), range(32)),
        {"remove_unused_columns": False},
    ),
    "concatenated": (lambda: torch.utils.data.ConcatDataset([Mapped(), ROWS]), {}),
    "datasets, concatenated": (lambda: datasets.concatenate_datasets([ROWS, ROWS]), {}),
    "list": (lambda: [ROWS[i] for i in range(64)], {}),
    "stream": (Streamed, {}),
    "sized stream": (SizedStream, {"max_steps": -1, "num_train_epochs": 2}),
    "mapped and shuffled stream": (lambda: STREAM.map(dict).shuffle(seed=1, buffer_size=8), {}),
    "interleaved streams": (lambda: datasets.interleave_datasets([STREAM, STREAM], [0.5, 0.5], seed=2), {}),
}


@pytest.mark.parametrize("kind", DATA)
def test_it_trains_and_with_pool_factor_one_it_is_plain(tmp_path, kind):
    made, settings = DATA[kind]
    runs = []
    for number, coreset in enumerate((None, ONE, CoresetConfig())):
        runs.append(
            trainer(tmp_path / str(number), tiny_model(), coreset, plain=not number, train_dataset=made(), **settings)
        )
        run(runs[-1])
    assert same(weights(runs[0]), weights(runs[1]))
    steps = [each.state.global_step for each in runs]
    assert steps[1] == steps[0]
    assert steps[2] == (steps[0] // 2 if "num_train_epochs" in settings else steps[0])
    ids = runs[2]._recorder.chosen + runs[2]._recorder.passed
    assert len(set(ids)) == len(ids) == 16


def test_a_transform_that_column_removal_leaves_nothing_fails_as_it_does_plainly(tmp_path):
    for plain in (True, False):
        made = trainer(tmp_path, plain=plain, train_dataset=TEXTS.with_transform(tokenized))
        with pytest.raises(ValueError, match="No columns in the dataset match"):
            run(made)


def pairs_of_text(rows: Any) -> Any:
    ids = [[int(word) for word in f"{row['source']} {row['target']}".split()] for row in rows]
    return Collator()([{"input_ids": each, "labels": each} for each in ids])


@pytest.mark.parametrize("removes", [False, True])
def test_a_text_column_called_source_reaches_the_collator(tmp_path, removes, caplog):
    data = Dataset.from_list([{"source": row["text"], "target": "5 6 7"} for row in TEXTS])
    settings = {"train_dataset": data, "data_collator": pairs_of_text, "remove_unused_columns": removes}
    runs = [
        trainer(tmp_path / str(number), tiny_model(), coreset, plain=not number, **settings)
        for number, coreset in enumerate((None, ONE, CoresetConfig()))
    ]
    if removes:  # the plain Trainer takes the text away, and so do we
        for made in runs:
            with pytest.raises((ValueError, DataError)):
                run(made)
        return
    assert same(*(weights(run(made)) for made in runs[:2]))
    assert run(runs[2]).state.global_step == 6
    assert "64 values in 64 examples" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        BY_LENGTH,
        {"dataloader_drop_last": True, "max_steps": -1, "num_train_epochs": 1, "train_dataset": mixture(70)},
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "max_steps": -1, "num_train_epochs": 2},
        {"label_names": ["labels"]},
        {"accelerator_config": {"split_batches": True}},
        {"accelerator_config": {"dispatch_batches": True}},
        {"accelerator_config": {"even_batches": False}},
        {"accelerator_config": {"use_seedable_sampler": False}},
    ],
    ids=["by length", "drop last", "workers", "label names", "split", "dispatch", "even", "no seedable sampler"],
)
def test_settings_of_the_loader(tmp_path, settings):
    made = run(trainer(tmp_path / "a", tiny_model(), **settings))
    steps = {"drop last": 4, "workers": 12}.get("workers" if "dataloader_num_workers" in settings else "", 0)
    assert made.state.global_step == steps or made.state.global_step > 0
    lines = (tmp_path / "a" / "selection.jsonl").read_text().splitlines()
    assert len(lines) == made.state.global_step


def test_a_length_column_and_grouping_by_it(tmp_path):
    data = mixture(64).map(lambda row: {"length": len(row["input_ids"])})
    assert run(trainer(tmp_path, tiny_model(), train_dataset=data, **BY_LENGTH)).state.global_step == 6


class Weighted(CoresetTrainer):
    """A sampler of one's own, which draws rows several times and reads an attribute of the data set."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        chances = torch.tensor(self.train_dataset.chances)
        return torch.utils.data.WeightedRandomSampler(chances, 64, generator=torch.Generator().manual_seed(0))


def test_a_sampler_of_ones_own(tmp_path):
    data = Mapped()
    data.chances = [1.0 if i % 2 else 0.0 for i in range(64)]  # type: ignore[attr-defined]
    plain = trainer(tmp_path, plain=True)
    made = Weighted(
        model=tiny_model(), args=plain.args, train_dataset=data, data_collator=Collator(), coreset=CoresetConfig()
    )
    run(made)
    assert made.state.global_step == 6
    assert all(number % 2 for number in made._recorder.chosen + made._recorder.passed)


def test_a_collator_that_is_replaced_later_and_one_that_counts(tmp_path):
    class Counting(Collator):
        calls = 0

        def __call__(self, rows: Any) -> Any:
            self.calls += 1
            assert all(set(row) == {"input_ids", "labels"} for row in rows)
            return super().__call__(rows)

    made = trainer(tmp_path, tiny_model(), train_dataset=ROWS)
    made.data_collator = Counting()
    run(made)
    assert made.data_collator.calls == 13  # one batch is read ahead
    assert made.state.global_step == 6


def test_a_data_set_that_is_replaced_on_the_way_is_for_the_next_call(tmp_path):
    from transformers import TrainerCallback

    other = mixture(40, seed=7)

    class Replaces(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            made.train_dataset = other

    made = trainer(tmp_path / "a", tiny_model(), extra={"callbacks": [Replaces()]})
    assert same(weights(run(made)), weights(run(trainer(tmp_path / "b", tiny_model()))))
    assert run(made).state.global_step == 6
    assert (
        made._tagged.latest(made).counts == {0: 14, 1: 12, 2: 12, 3: 2}
        or sum(made._tagged.latest(made).counts.values()) == 40
    )


@pytest.mark.parametrize(
    "data, found",
    [
        (datasets.DatasetDict({"train": ROWS}), "Found a DatasetDict of train"),
        (ROWS.to_pandas(), "from_pandas"),
        (ROWS.add_column("corebatch_id", [1] * 64), "corebatch_id already"),
    ],
    ids=["splits", "pandas", "our column"],
)
def test_what_is_no_data_set_is_named(tmp_path, data, found):
    with pytest.raises(DataError, match=found):
        run(trainer(tmp_path, train_dataset=data))


def test_a_loader_of_ones_own_is_named(tmp_path):
    class Own(CoresetTrainer):
        def get_train_dataloader(self) -> Any:
            return Trainer.get_train_dataloader(self)

    made = Own(model=tiny_model(), args=trainer(tmp_path).args, train_dataset=mixture(), data_collator=Collator())
    before = weights(made)
    with pytest.raises(ConfigError, match=r"carries the ids.*Own.get_train_dataloader made the loader"):
        run(made)
    assert same(before, weights(made))
