"""Ids and sources travel with the examples, whatever the data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from corebatch.errors import ConfigError, DataError
from corebatch.trainer.tagging import ID, SOURCE, Names, Passes, SourceCollator, name_hash, tag

ROWS = [
    {"input_ids": [1, 2, 3], "source": "logic"},
    {"input_ids": [4], "source": "algebra"},
    {"input_ids": [5, 6], "source": "logic"},
]


def hub(rows: list[dict[str, Any]] | None = None) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows if rows is not None else ROWS)


class Listed(torch.utils.data.Dataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class Streamed(torch.utils.data.IterableDataset[Any]):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        return iter(self.rows if worker is None else self.rows[worker.id :: worker.num_workers])


def with_column(name: str, values: list[Any]) -> list[dict[str, Any]]:
    return [{"input_ids": [1], name: value} for value in values]


FORMATS = {
    "plain": hub,
    "torch": lambda: hub().with_format("torch"),
    "numpy": lambda: hub().with_format("numpy"),
    "torch, one column": lambda: hub().with_format("torch", columns=["input_ids"]),
    "python, one column": lambda: hub().with_format(None, columns=["input_ids"]),
    "shuffled": lambda: hub([*ROWS[::-1]]).select([2, 1, 0]),
    "a torch data set": lambda: Listed(ROWS),
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_example_has_its_number_and_source(form: str) -> None:
    dataset = FORMATS[form]()
    tagged, sources = tag(dataset, "source")
    assert dict(sources.names) == {0: "algebra", 1: "logic"}
    assert sources.counts == {0: 1, 1: 2}
    assert len(tagged) == 3
    for number, source in enumerate([1, 0, 1]):
        row = tagged[number]
        assert (int(row[ID]), int(row[SOURCE])) == (number, source)
        assert list(row["input_ids"]) == ROWS[number]["input_ids"]
        assert isinstance(row["input_ids"], {"torch": torch.Tensor, "numpy": np.ndarray}.get(form.split(",")[0], list))
    if "one column" in form:
        assert set(tagged[0]) == {"input_ids", ID, SOURCE}
    assert ID not in dataset[0], "the user's data set is left as it was"


@pytest.mark.parametrize("made", [hub, Listed], ids=["hub", "torch"])
def test_no_source_column_is_one_source(made: Any) -> None:
    tagged, sources = tag(made([{"input_ids": [1]}] * 4), "source")
    assert (dict(sources.names), sources.counts) == ({0: "all"}, {0: 4})
    assert [int(tagged[i][SOURCE]) for i in range(4)] == [0] * 4
    assert [int(tagged[i][ID]) for i in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("made", [hub, Listed, Streamed], ids=["hub", "torch", "stream"])
def test_a_column_that_was_asked_for_by_name_and_is_missing_is_an_error(made: Any) -> None:
    with pytest.raises(ConfigError, match=r"coreset.source_column names 'topic'.* Found the columns input_ids, source"):
        list(iter(tag(made(ROWS), "topic")[0]))


@pytest.mark.parametrize("made", [hub, Listed, Streamed], ids=["hub", "torch", "stream"])
@pytest.mark.parametrize("values, found", [(["a", None], "None"), ([0.5, 1.5], "0.5"), ([True, False], "True")])
def test_a_source_that_is_neither_text_nor_integer_is_an_error(made: Any, values: list[Any], found: str) -> None:
    with pytest.raises(DataError, match=f"should hold text or integers.*{found}"):
        list(iter(tag(made(with_column("topic", values)), "topic")[0]))


@pytest.mark.parametrize(
    "dataset",
    [
        hub(with_column("source", [7, 3, 7])),
        hub(with_column("source", [7, 3, 7])).with_format("torch"),
        Listed([{"input_ids": [1], "source": torch.tensor(value)} for value in (7, 3, 7)]),
    ],
    ids=["hub", "hub of tensors", "tensors"],
)
def test_integer_sources(dataset: Any) -> None:
    tagged, sources = tag(dataset, "source")
    assert (dict(sources.names), sources.counts) == ({0: "3", 1: "7"}, {0: 1, 1: 2})
    assert [int(tagged[i][SOURCE]) for i in range(3)] == [1, 0, 1]


@pytest.mark.parametrize("made", [hub, Listed], ids=["hub", "torch"])
def test_no_examples_is_an_error(made: Any) -> None:
    with pytest.raises(DataError, match=r"should have examples. Found none"):
        tag(made([]), "source")


def test_examples_that_are_no_dictionaries_are_an_error() -> None:
    with pytest.raises(DataError, match=r"should give dictionaries. Found list"):
        tag(Listed([[1, 2]]), "source")


# Streams


@pytest.mark.parametrize(
    "stream", [Streamed(ROWS), hub().to_iterable_dataset()], ids=["torch", "hub"]
)  # fmt: skip
def test_a_stream_is_numbered_as_it_comes(stream: Any) -> None:
    tagged, sources = tag(stream, "source")
    assert isinstance(tagged, torch.utils.data.IterableDataset)
    assert sources.counts == {}
    assert sources.names[name_hash("logic")] == f"source {name_hash('logic')}"  # not seen yet
    for _ in range(2):  # each pass from the start
        rows = list(tagged)
        assert [row[ID] for row in rows] == [0, 1, 2]
        assert [row[SOURCE] for row in rows] == [name_hash(row["source"]) for row in ROWS]
        assert [list(row["input_ids"]) for row in rows] == [row["input_ids"] for row in ROWS]
    assert {sources.names[row[SOURCE]] for row in rows} == {"algebra", "logic"}


def test_a_stream_without_a_source_column_and_with_integers() -> None:
    tagged, sources = tag(Streamed([{"input_ids": [1]}]), "source")
    assert next(iter(tagged))[SOURCE] == name_hash("all")
    assert dict(sources.names) == {name_hash("all"): "all"}
    tagged, sources = tag(Streamed(with_column("source", [12])), "source")
    assert next(iter(tagged))[SOURCE] == name_hash("12")


def test_a_stream_passes_the_epoch_on() -> None:
    stream = Streamed(ROWS)
    tag(stream, "source")[0].set_epoch(3)
    assert stream.epoch == 3


def test_worker_processes_give_ids_of_their_own() -> None:
    rows = with_column("source", ["a"] * 7)
    tagged, _ = tag(Streamed(rows), "source")
    loader = torch.utils.data.DataLoader(
        tagged, batch_size=2, num_workers=2, collate_fn=lambda part: [row[ID] for row in part]
    )
    ids = [number for part in loader for number in part]
    assert len(ids) == len(set(ids)) == 7


def test_names_and_hashes() -> None:
    assert Names({1: "a"})[2] == "source 2"
    assert name_hash("algebra") == name_hash("algebra") != name_hash("logic")
    assert 0 <= name_hash("algebra") < 2**62
    assert torch.tensor(name_hash("x" * 99)).dtype == torch.long


# The collator


def collate(rows: list[Any]) -> dict[str, Any]:
    return {"keys": sorted(rows[0]), "values": torch.tensor([row["value"] for row in rows])}


def test_the_collator_takes_tags_and_the_source_column_out() -> None:
    rows = [{"value": i, "source": "a", ID: 10 + i, SOURCE: torch.tensor(i % 2)} for i in range(3)]
    before = [dict(row) for row in rows]
    batch = SourceCollator(collate, "source")(rows)
    assert batch["keys"] == ["value"]
    assert batch["values"].tolist() == [0, 1, 2]
    assert batch[ID].tolist() == [10, 11, 12]
    assert batch[SOURCE].tolist() == [0, 1, 0]
    assert batch[ID].dtype == batch[SOURCE].dtype == torch.long
    assert rows == before


def test_without_tags_as_in_evaluation() -> None:
    batch = SourceCollator(collate, "topic")([{"value": 1, "topic": "a"}])
    assert batch["keys"] == ["value"]
    assert ID not in batch
    assert SourceCollator(collate, "topic")([{"value": 1, "topic": 5}])["keys"] == ["topic", "value"]


def test_what_is_no_dictionary_is_the_users_own_affair() -> None:
    assert SourceCollator(len, "source")([]) == 0
    assert SourceCollator(len, "source")([(1, 2)]) == 1


def test_what_fills_up_the_end_of_a_stream_is_not_fresh() -> None:
    passes, ids = Passes(), torch.arange(8)
    for iterator in (iter([]), iter([])):
        passes.start(iterator)
        assert passes.fresh(ids).all()
        passes.seen(ids)
        passes.start(iterator)
        assert passes.fresh(torch.tensor([8, 9, 0, 1])).tolist() == [True, True, False, False]
        passes.seen(torch.tensor([8, 9]))


def test_after_a_resume_the_rows_before_it_are_known() -> None:
    passes = Passes(8)
    passes.start(iter([]))
    assert passes.fresh(torch.tensor([8, 0])).tolist() == [True, False]
    passes.start(iter([]))  # the next pass
    assert passes.fresh(torch.tensor([0])).all()
