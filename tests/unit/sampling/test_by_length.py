"""Rows by length: settings, buckets, units, pieces of documents; and a plain loader over them."""

import random
from collections import Counter

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from corebatch.errors import ConfigError, DataError, InputError
from corebatch.sampling.buckets import equal_bounds, powers_of_two, row_lengths, two_dimensional
from corebatch.sampling.by_length import ByLength, curriculum_odds, make_by_length
from corebatch.sampling.pieces import cut_documents
from corebatch.sampling.units import Units, UnitSampler


def lengths(count=300, most=60, seed=0):
    return torch.randint(1, most + 1, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "block, message",
    [
        ({"longset": 8}, "Found 'longset'. Did you mean 'longest'"),
        ({"longest": 100}, "power of two. Found 100"),
        ({"shortest": 0}, "at least 1"),
        ({"shortest": 16, "longest": 8}, "Found 16 above 8"),
        ({"curriculum": "grow"}, "Found 'grow'. Did you mean"),
        ({"curriculum": [1, 0]}, "above 0"),
        ({"curriculum": [1, float("nan")]}, "above 0"),
        ({"cycles": 0}, "cycles should be an integer of at least 1"),
        ({"leftovers": "pad"}, "keep or drop. Found 'pad'"),
        ({"column": ""}, "name of a column"),
        (["grow_p2"], "should be a mapping"),
    ],
)
def test_bad_settings_are_named(block, message):
    with pytest.raises(ConfigError, match=message):
        make_by_length(block)


def test_settings_and_their_plain_form():
    assert make_by_length(None) is None
    assert make_by_length("none") is None
    made = make_by_length({"curriculum": [4, 2, 1], "cycles": 8})
    assert make_by_length(made.plain()) == made
    assert made.in_words() == "each step's rows of one length (odds 4:2:1 in 8 cycles an epoch)"
    assert ByLength().in_words() == "each step's rows of one length (uniform)"


def test_the_curricula_have_the_papers_odds():
    assert curriculum_odds("grow_p2", 6).tolist() == [32, 16, 8, 4, 2, 1]
    assert curriculum_odds("grow_linear", 6).tolist() == [6, 5, 4, 3, 2, 1]
    assert curriculum_odds("grow_p100", 3).tolist() == [10000, 100, 1]
    assert curriculum_odds("shrink_p100", 3).tolist() == [1, 100, 10000]
    with pytest.raises(ConfigError, match=r"odds for 3 buckets. Found 2"):
        powers_of_two(torch.tensor([1, 2, 4]), curriculum=[1.0, 2.0])


def test_rows_are_in_the_first_power_that_they_fit_into():
    made = powers_of_two(torch.tensor([1, 2, 3, 4, 5, 8, 9, 16]), shortest=2)
    assert made.bounds.flatten().tolist() == [2, 4, 8, 16]
    assert made.of.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert made.rows.tolist() == [8, 4, 2, 1]
    assert powers_of_two(torch.tensor([3]), longest=16).rows.tolist() == [4, 2, 1]
    with pytest.raises(InputError, match=r"Found 2 longer than 8, rows 1, 2"):
        powers_of_two(torch.tensor([8, 9, 100]), longest=8)


@pytest.mark.parametrize(
    "bad, message",
    [
        (torch.tensor([]), "at least one row"),
        (torch.tensor([1.0]), "dtype torch.float32"),
        (torch.tensor([3, 0]), "Found none in rows 1"),
    ],
)
def test_bad_lengths_are_named(bad, message):
    with pytest.raises(InputError, match=message):
        powers_of_two(bad)
    with pytest.raises(InputError, match=message):
        two_dimensional(bad, bad)


def test_stretches_have_about_equally_many_tokens():
    values = lengths()
    edges = equal_bounds(values, 4)
    kinds = torch.searchsorted(edges, values)
    sums = [int(values[kinds == kind].sum()) for kind in range(4)]
    assert len(edges) == 4
    assert int(edges[-1]) == int(values.max())
    assert max(sums) - min(sums) < 0.1 * int(values.sum())
    assert equal_bounds(torch.full((9,), 7), 4).tolist() == [7]


def test_two_dimensions_pad_less_than_one():
    """Outputs that have little to do with the inputs: positions of units, against buckets by input alone."""
    inputs, outputs = lengths(4000, 200), lengths(4000, 200, seed=1)

    def positions(buckets):
        of, kinds = buckets.of, range(len(buckets.rows))
        return sum(int(inputs[of == k].max() + outputs[of == k].max()) * int((of == k).sum()) for k in kinds)

    one = positions(two_dimensional(inputs, outputs, buckets=16, sub_buckets=1))
    two = positions(two_dimensional(inputs, outputs, buckets=4, sub_buckets=4))
    assert two < 0.9 * one
    made = two_dimensional(inputs, outputs, buckets=4, sub_buckets=4)
    budget = int(made.bounds.amax(dim=0).sum())
    assert all(
        budget / 2 < int(rows) * int(bound.sum()) <= budget for rows, bound in zip(made.rows, made.bounds, strict=True)
    )
    with pytest.raises(InputError, match="Found 3 and 2"):
        two_dimensional(torch.tensor([1, 2, 3]), torch.tensor([1, 2]))


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("cycles", [1, 4])
def test_an_epoch_has_every_row_once_in_units_of_one_bucket(together, cycles):
    values = lengths()
    buckets = powers_of_two(values, curriculum="grow_p2")
    sampler = UnitSampler(buckets, together=together, cycles=cycles, seed=3)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        units = list(sampler)
        assert len(units) == len(sampler)
        assert len(units) % together == 0
        counts = Counter(row for unit in units for row in unit)
        assert set(counts) == set(range(len(values)))
        assert sum(counts.values()) - len(values) < together * len(buckets.rows)
        for place in range(0, len(units), together):
            rows = [row for unit in units[place : place + together] for row in unit]
            (kind,) = set(buckets.of[rows].tolist())
            assert all(1 <= len(unit) <= int(buckets.rows[kind]) for unit in units[place : place + together])
        assert units == list(sampler)
        epochs.append(units)
    assert epochs[0] != epochs[1]
    assert list(UnitSampler(buckets, together=together, cycles=cycles, seed=4)) != epochs[0]


def test_what_is_dropped_is_less_than_a_step_of_each_bucket_and_another_each_epoch():
    buckets = powers_of_two(lengths())
    sampler = UnitSampler(buckets, together=2, leftovers="drop")
    came = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        units = list(sampler)
        assert all(len(unit) == int(buckets.rows[buckets.of[unit[0]]]) for unit in units)
        came.append({row for unit in units for row in unit})
        assert len(came[-1]) == 300 - sampler.dropped == sum(map(len, units))
    assert came[0] != came[1]
    assert 0 < sampler.dropped < int(2 * buckets.rows.sum())
    with pytest.raises(ConfigError, match=r"Found \[3\] rows in them"):
        UnitSampler(powers_of_two(torch.tensor([4, 3, 4])), together=4, leftovers="drop")


def test_a_curriculum_goes_from_short_to_long_in_each_cycle():
    """The mean place of the shortest and of the longest bucket's units, in halves of an epoch of two cycles."""
    buckets = powers_of_two(lengths(4000, 64), shortest=8, curriculum="grow_p100")
    order = UnitSampler(buckets, cycles=2).order(0)
    half = len(order) // 2
    for part in (order[:half], order[half:]):
        places = [(part == kind).nonzero().double().mean() for kind in range(4)]
        assert places == sorted(places)
        assert places[0] < 0.3 * half < places[-1]


def test_a_plain_loader_gives_batches_of_equal_tokens():
    values = [16] * 12 + [8] * 20 + [4] * 40
    rows = [{"input_ids": [row] * length, "row": row} for row, length in enumerate(values)]
    sampler = UnitSampler(powers_of_two(row_lengths(rows)), together=2)
    for data in (rows, datasets.Dataset.from_list(rows)):
        loader = DataLoader(Units(data), batch_size=2, sampler=sampler, collate_fn=lambda some: some)
        batches = list(loader)
        assert all(sum(len(row["input_ids"]) for row in batch) == 32 for batch in batches)
        assert sorted(row["row"] for batch in batches for row in batch) == list(range(72))
        assert len(Units(data)) == 72
        assert Units(data)[3]["row"] == 3


def test_lengths_come_from_a_column():
    table = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3]], "n": [5, 6], "text": ["a", "b"]})
    assert row_lengths(table).tolist() == [2, 1]
    assert row_lengths(table, "n").tolist() == [5, 6]
    rows = [{"input_ids": torch.ones(4), "n": 3, "text": "a b"}]
    assert row_lengths(rows).tolist() == [4]
    assert row_lengths(rows, "n").tolist() == [3]
    for data, found in ((table, "the columns"), (rows, "str in row 0")):
        with pytest.raises(DataError, match=f"in the column 'text'. Found {found}"):
            row_lengths(data, "text")


# ---- pieces of documents ---------------------------------------------------------------------------------------------


def documents():
    source = random.Random(0)
    sizes = [1, 3, 4, 7, 8, 30, 31, 32, 33, 100, 200]
    tokens = [[source.randrange(5, 40) for _ in range(size)] for size in sizes]
    return datasets.Dataset.from_dict(
        {"input_ids": tokens, "attention_mask": [[1] * size for size in sizes], "source": [f"s{i}" for i in range(11)]}
    )


@pytest.mark.parametrize("drawn", [True, False])
def test_pieces_are_powers_of_two_of_one_document(drawn):
    whole = documents()
    made = cut_documents(whole, shortest=4, longest=16, random=drawn, seed=1)
    assert {len(row) for row in made["input_ids"]} == {4, 8, 16}
    for document, tokens in zip(whole["source"], whole["input_ids"], strict=True):
        own = [row for row in made if row["source"] == document]
        joined = [token for row in own for token in row["input_ids"]]
        assert joined == tokens[: len(joined)]
        assert len(tokens) - len(joined) < 4
        assert all(
            row["labels"] == row["input_ids"] and len(row["attention_mask"]) == len(row["labels"]) for row in own
        )
    again = cut_documents(whole, shortest=4, longest=16, random=drawn, seed=1)
    assert made["input_ids"] == again["input_ids"]
    other = cut_documents(whole, shortest=4, longest=16, random=drawn, seed=2)
    assert (made["input_ids"][:] == other["input_ids"][:]) != drawn


def test_labels_are_cut_with_their_tokens_and_the_column_may_have_another_name():
    table = (
        documents()
        .rename_column("input_ids", "tokens")
        .add_column("labels", [[-100] * len(x) for x in documents()["input_ids"]])
    )
    made = cut_documents(table, shortest=4, longest=16, column="tokens")
    assert set(made.column_names) == {"input_ids", "attention_mask", "source", "labels"}
    assert all(set(row["labels"]) == {-100} and len(row["labels"]) == len(row["input_ids"]) for row in made)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"shortest": 3}, ConfigError, "power of two. Found 3"),
        ({"shortest": 8, "longest": 4}, ConfigError, "Found 8 above 4"),
        ({"column": "tokens"}, DataError, "Found the columns input_ids"),
        ({"column": "source"}, DataError, "Found str in row 0"),
        ({"shortest": 256}, DataError, "Found none in 11 documents"),
    ],
)
def test_bad_documents_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        cut_documents(documents(), **settings)
