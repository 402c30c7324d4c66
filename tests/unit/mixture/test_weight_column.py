"""Rows that say how much they count: read, kept beside the tokens, and refused where they say nothing."""

from __future__ import annotations

import pytest
from mixture_rows import WriteLines, qa
from transformers import PreTrainedTokenizerFast

from corebatch.errors import ConfigError, DataError
from corebatch.mixture import load_mixture, preview_mixture


def worth(count: int, name: str = "weight") -> list[dict[str, object]]:
    return [{**row, name: 0.5 * number} for number, row in enumerate(qa(count))]


def test_the_column_travels_with_its_rows(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    rows = worth(4)
    rows[1]["completion"] = " "  # has no trained token, and is dropped
    paths = [str(write_jsonl("a.jsonl", rows)), str(write_jsonl("b.jsonl", qa(2)))]
    mixture = load_mixture(paths, tokenizer, weight_column="weight")
    assert mixture.dataset.column_names == ["input_ids", "labels", "source", "length", "weight"]
    assert list(mixture.dataset["weight"]) == [0.0, 1.0, 1.5, 1.0, 1.0]
    assert mixture.unused_columns == {}
    again = load_mixture(paths, tokenizer, weight_column="weight")  # kept rows
    assert list(again.dataset["weight"]) == [0.0, 1.0, 1.5, 1.0, 1.0]
    sample = preview_mixture(paths, tokenizer, weight_column="weight").sample
    assert list(sample["weight"]) == [0.0, 1.0, 1.5, 1.0, 1.0]


def test_a_name_of_one_s_own_and_a_repeated_row(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    path = write_jsonl("a.jsonl", worth(3, "value"))
    spec = {"path": str(path), "columns": {"worth": "value"}, "weight": 2.0}
    mixture = load_mixture([spec], tokenizer, weight_column="worth")
    assert sorted(mixture.dataset["worth"]) == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]


def test_cells_of_csv_are_numbers(tokenizer: PreTrainedTokenizerFast, tmp_path: object) -> None:
    path = tmp_path / "a.csv"  # type: ignore[operator]
    path.write_text("prompt,completion,weight\nwhat,four,2.5\nwhat,five,0\n")
    assert list(load_mixture([str(path)], tokenizer, weight_column="weight").dataset["weight"]) == [2.5, 0.0]


@pytest.mark.parametrize("value", [-1, None, "heavy", True, float("inf"), [1]], ids=str)
def test_what_is_no_weight_is_named(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines, value: object) -> None:
    path = write_jsonl("a.jsonl", [*worth(2), {**qa(1)[0], "weight": value}])
    with pytest.raises(DataError, match=r"a\.jsonl, line 3: 'weight' .* finite number"):
        load_mixture([str(path)], tokenizer, weight_column="weight")


def test_rows_that_lack_it_among_others_are_named(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    some = write_jsonl("a.jsonl", [*worth(1), *qa(1)])
    with pytest.raises(DataError, match=r"line 2.*Found None"):
        load_mixture([str(some)], tokenizer, weight_column="weight")
    late = write_jsonl("b.jsonl", [*qa(1), *worth(2)])
    with pytest.raises(DataError, match=r"line 2.*none in the first row"):
        load_mixture([str(late)], tokenizer, weight_column="weight")


def test_without_the_setting_a_weight_is_refused(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    path = write_jsonl("a.jsonl", worth(2))
    with pytest.raises(DataError, match=r"Name it by coreset\.weight_column"):
        load_mixture([str(path)], tokenizer)
    with pytest.raises(ConfigError, match="should be none of input_ids"):
        load_mixture([str(path)], tokenizer, weight_column="length")
