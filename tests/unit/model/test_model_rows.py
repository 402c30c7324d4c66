"""Rows out of padded batches and into others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import DataCollatorWithFlattening

from corebatch.batch.micro_batches import micro_batches
from corebatch.batch.pieces import deal, split
from corebatch.errors import CorebatchError
from corebatch.model.modes import forward_inputs
from corebatch.model.rows import Padding, check_pool, pack_together, put_together, row_spans, take_rows
from corebatch.types import ID, PLACES, SOURCE
from models import in_micro_batches, tiny_batch

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
    return in_micro_batches(taken, given, count, Padding(token=0, left=left), filler)


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


# Places, and rows packed one behind the other


def row(length: int, number: int = 0) -> dict[str, Tensor]:
    """A row whose tokens nobody else has."""
    tokens = 100 * (number + 1) + torch.arange(length)
    keys = {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}
    return {**keys, "token_type_ids": tokens % 3, ID: torch.tensor(number), SOURCE: torch.tensor(0)}


LAYOUTS = pytest.mark.parametrize("layout", ["right", "left", "packed"])


@LAYOUTS
@pytest.mark.parametrize("multiple_of", [1, 8])
@pytest.mark.parametrize("count, lengths", [(2, [5, 12, 1, 7, 12]), (1, [3]), (3, [4, 9]), (2, [])])
def test_places_are_where_the_tokens_lie(count: int, lengths: list[int], multiple_of: int, layout: str) -> None:
    rows, filler = [row(n, number) for number, n in enumerate(lengths)], row(6, 77)
    numbers = [-1 if number == 3 else 2 * number for number in range(len(rows))]
    made = in_micro_batches(
        rows,
        torch.arange(1.0, len(rows) + 1),
        count,
        Padding(token=0, left=layout == "left", multiple_of=multiple_of),
        filler,
        numbers=numbers,
        packed=layout == "packed",
    )
    assert len(made) == count
    found = []
    for batch in made:
        covered = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        assert batch[PLACES].dtype == torch.long
        assert batch[PLACES].shape[1] == 4
        for number, batch_row, start, end in batch[PLACES].tolist():
            tokens = batch["input_ids"][batch_row, start:end]
            example = int(tokens[0]) // 100 - 1
            original = filler if example == 77 else rows[example]
            assert torch.equal(tokens, original["input_ids"])
            assert torch.equal(batch["token_type_ids"][batch_row, start:end], original["token_type_ids"])
            assert number == (-1 if example == 77 else numbers[example])
            weights, weight = batch["loss_weights"], 0.0 if example == 77 else example + 1.0
            if layout == "packed":
                assert weights.shape == batch["input_ids"].shape
                assert weights[batch_row, start:end].tolist() == [weight] * len(tokens)
            else:
                assert float(weights[batch_row]) == weight
            covered[batch_row, start:end] = True
            found.append(example)
        assert torch.equal(covered, batch["input_ids"] != 0)
    assert sorted(found) == [*range(len(rows)), *[77] * (count - len(rows))]


def test_no_numbers_no_places() -> None:
    assert all(PLACES not in batch for batch in packed(2, 5))


def test_places_are_no_input_of_the_model() -> None:
    assert PLACES not in forward_inputs({PLACES: torch.zeros(1, 4)})


@pytest.mark.parametrize("flash", [False, True], ids=["", "flash"])
def test_packed_rows_are_what_transformers_collator_makes(flash: bool) -> None:
    rows = take_rows([tiny_batch()], [4, 2, 1])
    plain = [{key: row[key] for key in ("input_ids", "labels")} for row in rows]
    expected = DataCollatorWithFlattening(return_flash_attn_kwargs=flash)(plain)
    before = [row["labels"].clone() for row in rows]
    found = pack_together(rows, flash=flash)
    assert found.pop("use_cache") is False  # with a cache transformers lets rows see each other
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, Tensor):
            assert torch.equal(found[key], value), key
            assert found[key].dtype == value.dtype
        else:
            assert found[key] == value
    assert all(torch.equal(row["labels"], labels) for row, labels in zip(rows, before, strict=True))


def test_a_label_on_the_first_token_is_ignored_and_its_weight_stays_with_the_row() -> None:
    (made,) = in_micro_batches(
        [row(2, 0), row(3, 1)], torch.tensor([2.0, 5.0]), 1, Padding(token=0), row(1), packed=True, flash=True
    )
    assert made["labels"].tolist() == [[-100, 201, 202, -100, 101]]
    assert made["loss_weights"].tolist() == [[5.0, 5.0, 5.0, 2.0, 2.0]]
    assert made["cu_seq_lens_q"].tolist() == [0, 3, 5]
    assert made.keys().isdisjoint({"attention_mask", ID, SOURCE})


@pytest.mark.parametrize("key, value", [("embedding", torch.ones(3)), ("difficulty", torch.tensor(0.5))])
def test_a_key_by_row_cannot_be_packed(key: str, value: Tensor) -> None:
    """Also where one of the rows is as long as the key is wide."""
    rows = [{**row(length, number), key: value} for number, length in enumerate((3, 4))]
    with pytest.raises(CorebatchError, match=f"Found '{key}' of shapes"):
        in_micro_batches(rows, None, 2, Padding(token=0), rows[0], packed=True)
    assert len(in_micro_batches(rows, None, 2, Padding(token=0), rows[0])) == 2


@pytest.mark.parametrize(
    "change, found",
    [
        ({"attention_mask": torch.tensor([1, 0, 1, 1])}, "an attention mask with zeros inside the row in example 5"),
        ({"position_ids": torch.tensor([0, 1, 1, 2])}, "position_ids that do not count up by one in example 5"),
    ],
)
def test_rows_that_need_their_mask_or_positions_cannot_be_packed(change: dict[str, Tensor], found: str) -> None:
    with pytest.raises(CorebatchError, match=found):
        in_micro_batches([{**row(4, 5), **change}], None, 1, Padding(token=0), {**row(4, 6), **change}, packed=True)


def test_positions_of_a_row_that_was_padded_on_the_left_restart_at_zero() -> None:
    late = {**row(3, 1), "position_ids": torch.arange(7, 10)}
    assert pack_together([late, late])["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2]]


@LAYOUTS
@pytest.mark.parametrize("pieces", [[[0, 1], [2, 3]], [[0, 1, 2], [2, 3, 4]], [[0, 1, 2, 3, 4, 5]]])
def test_pieces_that_do_not_hold_every_row_once_are_an_error(pieces: list[list[int]], layout: str) -> None:
    rows = {number: row(2, number) for number in range(5)}
    with pytest.raises(CorebatchError, match=r"each of 5 rows once\. Found [46] rows in [12]"):
        micro_batches(rows, None, pieces, Padding(token=0), rows[0], packed=layout == "packed")


@given(
    lengths=st.lists(st.integers(1, 60), max_size=24),
    count=st.integers(1, 8),
    room=st.one_of(st.none(), st.integers(0, 4)),
)
def test_dealing_balances_tokens(lengths: list[int], count: int, room: int | None) -> None:
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    fair = -(-len(lengths) // count)
    most = fair + (room or 0)
    piles = deal(order, lengths, count, most)
    assert len(piles) == count
    assert sorted(i for pile in piles for i in pile) == list(range(len(lengths)))
    assert all(min(1, len(lengths) // count) <= len(pile) <= most for pile in piles)
    assert piles == deal(order, lengths, count, most)

    def spread(parts: list[list[int]]) -> int:
        tokens = [sum(lengths[i] for i in part) for part in parts]
        return max(tokens) - min(tokens)

    assert spread(piles) <= spread(split(order, count))
    if lengths and most == len(lengths):  # Graham's bound holds without the limit of rows
        best = max(max(lengths), -(-sum(lengths) // count))
        assert max(sum(lengths[i] for i in pile) for pile in piles) <= best + max(lengths)


def test_dealing_is_decided_by_ids_where_lengths_tie() -> None:
    made = packed_ids([(4, 9), (4, 2), (4, 5), (4, 1)], 2)
    assert made == [[1, 5], [2, 9]]


def packed_ids(rows: list[tuple[int, int]], count: int) -> list[list[int]]:
    """Example ids by micro-batch of packed rows (length, id)."""
    made = in_micro_batches([row(*pair) for pair in rows], None, count, Padding(token=0), row(1), packed=True)
    firsts = [batch["input_ids"][batch["position_ids"] == 0] for batch in made]
    return [(first // 100 - 1).tolist() for first in firsts]


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
