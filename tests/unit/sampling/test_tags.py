"""Ids and sources travel with the examples, whatever the data set."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from corebatch.errors import ConfigError, DataError
from corebatch.sampling.collating import SourceCollator
from corebatch.sampling.tags import Names, Passes, is_stream, name_hash, tag
from corebatch.types import ID, SOURCE

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


@pytest.mark.parametrize("made", [Listed, Streamed], ids=["torch", "stream"])
def test_examples_that_are_no_dictionaries_are_carried_to_the_users_collator(made: Any) -> None:
    rows: list[Any] = [[1, 2], "three", UserDict({"input_ids": [4]})]
    tagged, _ = tag(made(rows), "source")
    taken = list(tagged) if made is Streamed else [tagged[i] for i in range(3)]
    batch = SourceCollator(lambda examples: {"examples": examples}, "source")(taken)
    assert batch["examples"] == rows
    assert batch[ID].tolist() == [0, 1, 2]


def test_a_source_column_of_examples_without_columns_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"source_column names 'topic'.*each is a list"):
        tag(Listed([[1, 2]]), "topic")


def unsized() -> Any:
    class NoLength:
        def __getitem__(self, index: int) -> Any:
            return ROWS[index]

    return NoLength()


@pytest.mark.parametrize(
    "dataset, found",
    [
        (datasets.DatasetDict({"train": hub(), "test": hub()}), "Found a DatasetDict of train, test: pass one of them"),
        ({"train": hub()}, "Found a dict of train"),
        (hub().to_pandas(), "KeyError: 0 from pandas.*DataFrame.*from_pandas"),
        (unsized(), "Found NoLength"),
        (Listed([{"input_ids": [1], ID: 3}]), "corebatch_id already: rename or remove"),
        (hub([{"input_ids": [1], SOURCE: 3, ID: 2}]), "corebatch_id and corebatch_source already"),
    ],
    ids=["splits", "dict", "pandas", "no length", "our column", "our columns"],
)
def test_what_is_no_data_set_or_has_our_columns_is_named(dataset: Any, found: str) -> None:
    with pytest.raises(DataError, match=found):
        tag(dataset, "source")


def test_our_column_in_a_stream_is_named() -> None:
    with pytest.raises(DataError, match="corebatch_id already"):
        next(iter(tag(Streamed([{"input_ids": [1], ID: 3}]), "source")[0]))


def test_the_attributes_of_a_data_set_show_through_and_its_rows_are_read_together() -> None:
    class Together(Listed):
        lengths = (3, 1, 2)

        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [{**self.rows[index], "read": len(indices)} for index in indices]

    tagged, _ = tag(Together(ROWS), "source")
    assert tagged.lengths == (3, 1, 2)
    loader = torch.utils.data.DataLoader(tagged, batch_size=3, collate_fn=list)
    assert [(row[ID], row["read"]) for row in next(iter(loader))] == [(0, 3), (1, 3), (2, 3)]
    subset, _ = tag(torch.utils.data.Subset(hub(), [2, 0]), "source")
    assert [row[ID] for row in next(iter(torch.utils.data.DataLoader(subset, batch_size=2, collate_fn=list)))] == [0, 1]
    both, sources = tag(torch.utils.data.ConcatDataset([Listed(ROWS), Listed(ROWS)]), "source")
    assert (len(both), sources.counts) == (6, {0: 2, 1: 4})
    assert both[5][ID] == 5


# Transforms and columns of other meanings


def test_a_transform_is_given_its_columns_and_ids_are_led_around_it() -> None:
    given = []

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        given.append(sorted(batch))
        return {"labels": [[x + 1 for x in ids] for ids in batch["input_ids"]]}

    tagged, sources = tag(hub().with_transform(transform), "source")
    assert sources.counts == {0: 1, 1: 2}
    assert tagged[1] == {"labels": [5], ID: 1, SOURCE: 0}
    assert given == [["input_ids", "source"]]
    rows = tagged.__getitems__([0, 2])
    assert [(row["labels"], row[ID], row[SOURCE]) for row in rows] == [([2, 3, 4], 0, 1), ([6, 7], 2, 1)]
    one, _ = tag(hub().with_transform(transform, columns=["input_ids"], output_all_columns=True), "source")
    assert one[0] == {"labels": [2, 3, 4], "source": "logic", ID: 0, SOURCE: 1}
    every, _ = tag(hub().with_format("torch", columns=["input_ids"], output_all_columns=True), "source")
    assert set(every[0]) == {"input_ids", "source", ID, SOURCE}


@pytest.mark.parametrize(
    "made, kind, found",
    [
        ({"labels": [1, 2, 3, 4]}, DataError, r"a row for each row.*'labels': 4} for 1 rows"),
        ([1], DataError, "a row for each row.*Found list"),
        ({"source": ["a"]}, ConfigError, "makes the column 'source'.*source_column to none"),
        ({ID: [1]}, DataError, "corebatch_id already"),
    ],
    ids=["other rows", "no columns", "a source", "our column"],
)
def test_a_transform_that_ids_cannot_follow_is_named(made: Any, kind: Any, found: str) -> None:
    tagged, _ = tag(hub([{"input_ids": [1]}] * 2).with_transform(lambda batch: made), "source")
    with pytest.raises(kind, match=found):
        tagged[0]


@pytest.mark.parametrize("made", [hub, Listed], ids=["hub", "torch"])
def test_a_column_called_source_that_differs_in_most_examples_is_none(made: Any) -> None:
    rows = [{"input_ids": [1], "source": f"text {i // 2}" if i < 40 else f"text {i}"} for i in range(100)]
    _, sources = tag(made(rows), "source")
    assert sources.counts == {0: 100}
    assert "has 80 values in 100 examples" in sources.note
    assert len(tag(made(rows), "source", needed=True)[1].counts) == 80
    assert tag(made(rows), "none")[1].counts == {0: 100}
    renamed = [{"input_ids": [1], "topic": row["source"]} for row in rows]
    assert len(tag(made(renamed), "topic")[1].counts) == 80
    assert not tag(made(rows[:50]), "source")[1].note


def test_a_stream_that_says_its_length() -> None:
    class Sized(Streamed):
        def __len__(self) -> int:
            return len(self.rows)

    tagged, sources = tag(Sized(ROWS), "source")
    assert len(tagged) == 3
    assert sources.counts == {}
    assert is_stream(tagged)
    assert not hasattr(tag(Streamed(ROWS), "source")[0], "__len__")


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
    assert batch["keys"] == ["source", "value"], "the user's collator gets the user's columns"
    assert batch["values"].tolist() == [0, 1, 2]
    assert batch[ID].tolist() == [10, 11, 12]
    assert batch[SOURCE].tolist() == [0, 1, 0]
    assert batch[ID].dtype == batch[SOURCE].dtype == torch.long
    assert rows == before


def test_without_tags_as_in_evaluation() -> None:
    batch = SourceCollator(collate, "topic")([{"value": 1, "topic": "a"}])
    assert batch["keys"] == ["topic", "value"]
    assert ID not in batch
    assert SourceCollator(collate, "topic")([{"value": 1, "topic": 5}])["keys"] == ["topic", "value"]


def test_a_collator_that_cannot_do_with_a_name_gets_examples_without_it() -> None:
    calls = []

    def strict(rows: list[Any]) -> dict[str, Any]:
        calls.append(sorted(rows[0]))
        return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}

    collator = SourceCollator(strict, "source")
    for _ in range(2):
        batch = collator([{"value": 1, "source": "a", ID: 0, SOURCE: 0}])
        assert set(batch) == {"value", ID, SOURCE}
    assert calls == [["source", "value"], ["value"], ["value"]]
    kept = SourceCollator(lambda rows: {key: [row[key] for row in rows] for key in rows[0]}, "source")
    assert set(kept([{"value": 1, "source": "a", ID: 0, SOURCE: 0}])) == {"value", ID, SOURCE}


def padded(rows: list[Any], left: bool = False) -> dict[str, Any]:
    width = max(len(row["input_ids"]) for row in rows)
    fills = [[0] * (width - len(row["input_ids"])) for row in rows]
    both = zip(rows, fills, strict=True)
    return {"input_ids": torch.tensor([f + r["input_ids"] if left else r["input_ids"] + f for r, f in both])}


def test_a_collator_that_moves_or_joins_rows_is_named() -> None:
    rows = [{"input_ids": ids, ID: i, SOURCE: 0} for i, ids in enumerate([[5], [6, 7, 8], [9, 9]])]
    for left in (False, True):
        assert SourceCollator(lambda rows, left=left: padded(rows, left), "source")(rows)[ID].tolist() == [0, 1, 2]
        by_length = SourceCollator(
            lambda rows, left=left: padded(sorted(rows, key=lambda row: -len(row["input_ids"])), left), "source"
        )
        with pytest.raises(DataError, match=r"should leave examples in their order.*example 0 of a batch in row 2"):
            by_length(rows)
    joined = SourceCollator(lambda rows: {"input_ids": torch.tensor([[5, 6, 7, 8, 9, 9]])}, "source")
    with pytest.raises(DataError, match=r"a row of each example.*Found 1 rows of 3"):
        joined(rows)
    with pytest.raises(DataError, match=r"should make a dictionary.*Found tuple"):
        SourceCollator(tuple, "source")(rows)
    changed = SourceCollator(lambda rows: {"input_ids": padded(rows)["input_ids"] + 1}, "source")
    assert changed(rows)[ID].tolist() == [0, 1, 2], "what a collator makes of tokens is its own affair"


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
