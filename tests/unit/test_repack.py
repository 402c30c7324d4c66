"""Rows out of padded batches and into others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from corebatch.errors import CorebatchError
from corebatch.trainer.repack import Padding, check_pool, micro_batches, put_together, row_spans, take_rows
from corebatch.trainer.tagging import ID, SOURCE
from models import tiny_batch

LENGTHS = (12, 10, 8, 6, 12)  # of tiny_batch's rows


def pool(*, left: bool = False, seed: int = 1, pad: int = 0, first: int = 0) -> dict[str, Tensor]:
    """A batch with everything that a collator may add: keys by token, keys by row, of other types and shapes."""
    batch = tiny_batch(left=left, seed=seed, pad=pad)
    mask = batch["attention_mask"]
    batch["token_type_ids"] = mask * 3
    batch["token_weights"] = batch["input_ids"] / 7
    batch["pairs"] = torch.stack([mask, 2 * mask], dim=-1)  # [B, T, 2]
    batch["difficulty"] = torch.linspace(0.0, 1.0, 5)
    batch["embedding"] = torch.arange(15.0).view(5, 3)  # [B, 3]: by row, not by token
    batch[ID] = torch.arange(first, first + 5)
    batch[SOURCE] = torch.tensor([0, 1, 0, 1, 2])
    return batch


SIDES = pytest.mark.parametrize("left", [False, True], ids=["right", "left"])


@SIDES
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
def test_spans(left: bool, masked: bool) -> None:
    batch = tiny_batch(left=left, pad=3)
    if not masked:
        del batch["attention_mask"]
        assert row_spans(batch).tolist() == [[0, 15]] * 5
    else:
        expected = [[15 - n, 15] if left else [0, n] for n in LENGTHS]
        assert row_spans(batch).tolist() == expected


def test_spans_of_odd_rows() -> None:
    """A hole in the mask stays inside; a label beyond the mask counts; a row of nothing keeps one token."""
    batch = {
        "input_ids": torch.ones(3, 5, dtype=torch.long),
        "attention_mask": torch.tensor([[0, 1, 0, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]),
        "labels": torch.tensor([[-100] * 5, [-100, -100, 7, -100, -100], [-100] * 5]),
    }
    assert row_spans(batch).tolist() == [[1, 4], [0, 3], [0, 1]]


@SIDES
@pytest.mark.parametrize("to_left", [False, True], ids=["to right", "to left"])
def test_the_round_trip(left: bool, to_left: bool) -> None:
    """Rows of two batches of unlike width, in any order, are the rows that a collator would pad."""
    batches = [pool(left=left), pool(left=left, seed=2, pad=4, first=5)]
    wanted = [7, 0, 3, 9]
    rows = take_rows(batches, wanted)
    assert [len(row["input_ids"]) for row in rows] == [LENGTHS[number % 5] for number in wanted]
    found = put_together(rows, Padding(token=0, left=to_left))
    width = max(LENGTHS[number % 5] for number in wanted)
    for i, number in enumerate(wanted):
        source = pool(left=to_left, seed=1 + number // 5, first=5 * (number // 5))
        cut = slice(12 - width, 12) if to_left else slice(0, width)
        for key, value in source.items():
            row = value[number % 5]
            by_token = row.ndim > 0 and len(row) == 12
            assert torch.equal(found[key][i], row[cut] if by_token else row), key
            assert found[key].dtype == value.dtype
    assert found.keys() == batches[0].keys()


def test_padding_values_and_multiples() -> None:
    rows = take_rows([pool()], [1, 3])
    found = put_together(rows, Padding(token=63, multiple_of=8))
    assert found["input_ids"].shape == (2, 16)
    assert found["input_ids"][0, 10:].tolist() == [63] * 6
    assert found["labels"][0, 10:].tolist() == [-100] * 6
    for key in ("attention_mask", "position_ids", "token_type_ids", "token_weights"):
        assert found[key][0, 10:].tolist() == [0] * 6
    assert put_together(rows, Padding(token=0, multiple_of=5))["labels"].shape == (2, 10)


@pytest.mark.parametrize("width", [10, 6])
def test_a_key_by_row_as_wide_as_one_of_the_rows_is_no_sequence(width: int) -> None:
    batch = tiny_batch()
    batch["embedding"] = torch.arange(5.0 * width).view(5, width)
    found = put_together(take_rows([batch], [1, 3]), Padding(token=0))
    assert torch.equal(found["embedding"], batch["embedding"][[1, 3]])


# Micro-batches


def packed(count: int, rows: int, weights: bool = True, left: bool = False) -> list[dict[str, Tensor]]:
    taken = take_rows([pool(left=left), pool(left=left, seed=2, first=5)], list(range(rows)))
    filler = take_rows([pool(left=left)], [0])[0]
    given = torch.arange(1.0, rows + 1) if weights else None
    return micro_batches(taken, given, count, Padding(token=0, left=left), filler)


@SIDES
@pytest.mark.parametrize("count, rows, sizes", [(1, 7, [7]), (3, 7, [3, 2, 2]), (4, 4, [1] * 4), (2, 10, [5, 5])])
def test_as_many_micro_batches_as_asked_for(count: int, rows: int, sizes: list[int], left: bool) -> None:
    made = packed(count, rows, left=left)
    assert [len(batch["input_ids"]) for batch in made] == sizes
    assert sorted(w for batch in made for w in batch["loss_weights"].tolist()) == list(range(1, rows + 1))
    widths = [batch["input_ids"].shape[1] for batch in made]
    assert widths == sorted(widths, reverse=True)  # rows of like length together, the longest first
    for batch in made:
        assert ID not in batch
        assert SOURCE not in batch
        for i, weight in enumerate(batch["loss_weights"].int().tolist()):
            original = tiny_batch(left=left, seed=1 + (weight - 1) // 5)["input_ids"][(weight - 1) % 5]
            real = batch["attention_mask"][i] == 1
            assert torch.equal(batch["input_ids"][i][real], original[original != 0])


def test_equal_lengths_are_ordered_by_id() -> None:
    (made,) = packed(1, 10)
    # Rows 0, 4, 5 and 9 have 12 tokens, 1 and 6 have 10, 2 and 7 have 8, 3 and 8 have 6; the weights are number + 1.
    assert made["loss_weights"].tolist() == [1, 5, 6, 10, 2, 7, 3, 8, 4, 9]


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_empty_slots_carry_a_row_of_weight_zero(rows: int) -> None:
    made = packed(3, rows)
    assert [batch["loss_weights"].tolist() for batch in made] == [
        *([float(i + 1)] for i in range(rows)),
        *([0.0] for _ in range(3 - rows)),
    ]
    assert all(bool((batch["labels"] != -100).any()) for batch in made)


def test_no_weights_no_key() -> None:
    assert all("loss_weights" not in batch for batch in packed(2, 5, weights=False))


# What cannot be taken apart


@pytest.mark.parametrize(
    "change, found",
    [
        ({"cu_seq_lens_q": torch.tensor([0, 3])}, "Found cu_seq_lens_q"),
        ({"seq_idx": torch.zeros(5, 12), "max_length_q": 3}, "Found seq_idx, max_length_q"),
        ({"labels": None}, "Found attention_mask, input_ids, position_ids"),
        ({"input_ids": None}, "Found attention_mask, labels, position_ids"),
        ({"text": ["a"] * 5}, "Found 'text': list"),
        ({"scalar": torch.tensor(1.0)}, "Found 'scalar': ()"),
        ({"other": torch.zeros(4, 2)}, "Found 'other': (4, 2)"),
    ],
)
def test_a_pool_that_cannot_be_taken_apart_is_an_error(change: dict[str, Any], found: str) -> None:
    batch: dict[str, Any] = {**tiny_batch(), **change}
    batch = {key: value for key, value in batch.items() if value is not None}
    with pytest.raises(CorebatchError) as caught:
        check_pool(batch)
    assert isinstance(caught.value, ValueError)
    assert found in str(caught.value)


def test_a_good_pool_passes() -> None:
    check_pool(pool())
