from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from corebatch.errors import ConfigError, DataError
from corebatch.mixture import PaddingCollator

ROWS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "source": "a", "length": 3},
    {"input_ids": [8], "labels": [8], "source": "b", "length": 1},
]


def test_pads_on_the_right_and_leaves_other_columns_out(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = PaddingCollator(tokenizer)(ROWS)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[-100, 6, 7], [8, -100, -100]],
    }
    assert all(value.dtype == torch.long for value in batch.values())


def test_a_multiple_and_tensors(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"input_ids": torch.tensor([5, 6]), "labels": np.array([5, 6]), "attention_mask": torch.tensor([0, 1])}]
    batch = PaddingCollator(tokenizer, pad_to_multiple_of=4)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 0, 0]]
    assert batch["attention_mask"].tolist() == [[0, 1, 0, 0]]


def test_pads_with_the_end_of_sequence_if_need_be(tokenizer: PreTrainedTokenizerFast) -> None:
    class NoPad:
        pad_token_id = None
        eos_token_id = 2

    assert PaddingCollator(NoPad())(ROWS)["input_ids"].tolist() == [[5, 6, 7], [8, 2, 2]]


def test_errors(tokenizer: PreTrainedTokenizerFast, bare_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="pad token"):
        PaddingCollator(bare_tokenizer)
    with pytest.raises(ConfigError, match="pad_to_multiple_of"):
        PaddingCollator(tokenizer, pad_to_multiple_of=0)
    collate = PaddingCollator(tokenizer)
    with pytest.raises(DataError, match="at least one row"):
        collate([])
    with pytest.raises(DataError, match="Found 'input_ids'"):
        collate([{"input_ids": [1]}])
    with pytest.raises(DataError, match="one length"):
        collate([{"input_ids": [1], "labels": [1, 2]}])
