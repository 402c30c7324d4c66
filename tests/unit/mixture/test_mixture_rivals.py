"""Columns beside those of a row's form, names that meet nothing, and turns in other containers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from mixture_rows import WriteLines
from transformers import PreTrainedTokenizerFast

from corebatch.errors import DataError
from corebatch.mixture import load_mixture, preview_mixture, tokenise_row

U, A = {"role": "user", "content": "what is 4?"}, {"role": "assistant", "content": "the answer"}
CHAT = {"messages": [U, A]}
QA = {"prompt": "what is 4?", "completion": "the answer"}
ALPACA = {"instruction": "add", "input": "2 and 2", "output": "four"}
TEXT = "<|user|>what is 4?<|end|>\n<|assistant|>the answer<|end|>\n"


@pytest.mark.parametrize(
    "row, name",
    [
        (CHAT | {"prompt": "another question"}, "prompt"), (CHAT | {"instruction": "be brief"}, "instruction"),
        (CHAT | {"completion": "five"}, "completion"), (CHAT | {"text": "a passage to read"}, "text"),
        (CHAT | {"conversations": [{"from": "gpt", "value": "five"}]}, "conversations"),
        (QA | {"input": "of all"}, "input"), (QA | {"instruction": "be brief"}, "instruction"),
        (QA | {"output": "five"}, "output"), (ALPACA | {"text": "only four"}, "text"),
        (ALPACA | {"prompt": [{"role": "user", "content": "x y z"}]}, "prompt"),
    ],
)  # fmt: skip
def test_a_column_of_another_form_that_says_something_else(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines, tmp_path: Path, row: dict[str, Any], name: str
) -> None:
    path = write_jsonl("data.jsonl", [row | {name: None}, row])
    pq.write_table(pa.Table.from_pylist([row | {name: None}, row]), tmp_path / "table.parquet")
    for each in (str(path), str(tmp_path / "table.parquet")):
        for read in (load_mixture, preview_mixture):
            with pytest.raises(DataError, match=rf"2: the column '{name}' says something.*ignore_columns: \[{name}\]"):
                read([each], tokenizer)
        assert len(load_mixture([{"path": each, "ignore_columns": [name]}], tokenizer).dataset) == 2


@pytest.mark.parametrize(
    "row, name",
    [
        (CHAT | {"prompt": "what  is 4?\n"}, "prompt"), (CHAT | {"text": TEXT}, "text"),
        (CHAT | {"prompt": ""}, "prompt"),
        (CHAT | {"conversations": [{"from": "gpt", "value": "the answer"}]}, "conversations"),
        (ALPACA | {"text": "### Task: add\n### Input: 2 and 2\n### Response: four"}, "text"),
        (QA | {"text": "what is 4? the answer"}, "text"), (QA | {"output": 3}, "output"),
        ({"text": "a story", "prompt": "tell one", "instruction": "well"}, "prompt"),
        ({"input_ids": [9, 10], "text": "other"}, "text"),
    ],
)  # fmt: skip
def test_a_column_of_another_form_that_says_the_same_is_listed(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines, row: dict[str, Any], name: str
) -> None:
    path = str(write_jsonl("data.jsonl", [row]))
    assert name in load_mixture([path], tokenizer).unused_columns[path]


@pytest.mark.parametrize(
    "extra, key",
    [
        ({"choices": ["a", "b"]}, "choices"), ({"options": {"A": "x"}}, "options"), ({"label": "1"}, "label"),
        ({"desirable": False}, "desirable"), ({"rating": 4}, "rating"), ({"weights": 0.5}, "weights"),
        ({"weight": "0.5"}, "weight"), ({"train": False}, "train"), ({"trainable": "0"}, "trainable"),
        ({"skip": True}, "skip"), ({"masked": 1}, "masked"), ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"), ({"rationale": "since"}, "rationale"),
        ({"response_mask": [0, 1]}, "response_mask"), ({"tool_definitions": [{"name": "f"}]}, "tool_definitions"),
    ],
)  # fmt: skip
def test_more_keys_that_would_be_lost(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines, extra: dict[str, Any], key: str
) -> None:
    path = write_jsonl("data.jsonl", [QA, QA | extra])
    with pytest.raises(DataError, match=rf"data.jsonl, line 2: '{key}' \(.*`ignore_columns: \[{key}\]`"):
        load_mixture([str(path)], tokenizer)


def test_what_says_nothing_is_not_refused(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    more = {"weight": "1.0", "train": True, "skip": False, "tool_choice": "auto", "parallel_tool_calls": True}
    path = str(write_jsonl("data.jsonl", [QA | more | {"choices": [], "images": [], "options": "x", "loss_weight": 1}]))
    assert len(load_mixture([path], tokenizer).dataset) == 1
    train = str(write_jsonl("more.jsonl", [QA | {"train": "train", "masked": 0, "label": 3}]))
    assert len(load_mixture([train], tokenizer).dataset) == 1


@pytest.mark.parametrize("name, near", [("reasoning_contnt", "reasoning_content"), ("labell", "label"), ("zzz", None)])
def test_an_ignored_name_that_nothing_has(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines, tmp_path: Path, name: str, near: str | None
) -> None:
    row = {"messages": [U, A | {"reasoning_content": "since"}], "label": "x"}
    path = str(write_jsonl("data.jsonl", [CHAT, row]))
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "table.parquet")
    hint = rf" \(did you mean '{near}'\?\)" if near else r"\. Found 'content', 'label'"
    for each in (path, str(tmp_path / "table.parquet")):
        with pytest.raises(DataError, match=rf"`ignore_columns` names '{name}', which no row and no turn has{hint}"):
            load_mixture([{"path": each, "ignore_columns": ["reasoning_content", "label", name]}], tokenizer)
        assert load_mixture([{"path": each, "ignore_columns": ["reasoning_content", "label"]}], tokenizer)


def test_a_mapped_column_that_the_form_does_not_use(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines
) -> None:
    path = str(write_jsonl("data.jsonl", [{"question": "q", "answer": "a", "passage": "p"}]))
    columns = {"prompt": "question", "completion": "answer", "input": "passage"}
    with pytest.raises(DataError, match=r"line 1: `columns` maps input to 'passage', which .*prompt and completion"):
        load_mixture([{"path": path, "columns": columns}], tokenizer)


def test_rows_of_several_splits_in_one_file(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    rows = [QA | {"split": "train"}, QA, QA | {"split": "Validation"}]
    path = str(write_jsonl("data.jsonl", rows))
    with pytest.raises(DataError, match=r"line 3: the column 'split' says 'validation', and 'train' in .*line 1"):
        load_mixture([path], tokenizer)
    assert len(load_mixture([{"path": path, "ignore_columns": ["split"]}], tokenizer).dataset) == 3
    held_out = [str(write_jsonl(f"{i}.jsonl", [QA | {"split": split}])) for i, split in enumerate(("test", "hard"))]
    assert len(load_mixture(held_out, tokenizer).dataset) == 2


def test_turns_as_json_and_as_a_mapping_of_lists(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines, tmp_path: Path
) -> None:
    turns = [U, A | {"weight": 0}, U, A | {"mood": "good"}]
    lists = {
        "role": [turn["role"] for turn in turns], "content": [turn["content"] for turn in turns],
        "weight": [None, 0, None, None], "mood": [None, None, None, "good"],
    }  # fmt: skip
    rows = [{"messages": turns}, {"messages": json.dumps(turns)}, {"messages": lists}]
    for number, row in enumerate(rows):
        path = str(write_jsonl(f"{number}.jsonl", [row]))
        mixture = load_mixture([path], tokenizer)
        assert mixture.text(0, tokenizer) == TEXT * 2
        assert mixture.counts[mixture.dataset[0]["source"]].trained_tokens < mixture.dataset[0]["length"] / 2
        assert mixture.unused_columns == {path: ("messages.mood",)}
        whole = load_mixture([{"path": path, "ignore_columns": ["weight"]}], tokenizer)
        trained = [x for x in whole.dataset[0]["labels"] if x != -100]
        assert tokenizer.decode(trained) == "the answer<|end|>\n" * 2
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{number}.parquet")
        table = load_mixture([str(tmp_path / f"{number}.parquet")], tokenizer).dataset[0]
        assert table["labels"] == mixture.dataset[0]["labels"]


@pytest.mark.parametrize(
    "cell, words",
    [
        ({"role": ["user", "assistant"], "content": ["q"]}, "lists in 'messages' should have one length.*'role': 2"),
        ("[{'role': 'user', 'content': 'q'}]", "'messages': is not valid JSON.*A string should hold JSON here"),
        ('[{"role": "user", "content": "q", "content": "r"}]', "'messages': has the key 'content' twice"),
        ("hello", "should be a list of messages"), ("[]", "list of messages, not empty"), ("3", "list of messages"),
    ],
)  # fmt: skip
def test_turns_that_are_none(tokenizer: PreTrainedTokenizerFast, cell: Any, words: str) -> None:
    with pytest.raises(DataError, match=rf"f.jsonl, line 4.*{words}"):
        tokenise_row({"messages": cell}, tokenizer, where="f.jsonl, line 4")


def test_labels_that_are_null_do_not_say_what_is_trained(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines
) -> None:
    path = str(write_jsonl("data.jsonl", [{"input_ids": [9, 10, 11], "labels": None}]))
    with pytest.raises(DataError, match="line 1: 'labels' is null"):
        load_mixture([path], tokenizer)
    kept = load_mixture([{"path": path, "ignore_columns": ["labels"]}], tokenizer)
    assert kept.dataset[0]["labels"] == [9, 10, 11]


@pytest.mark.parametrize(
    "row, theirs, ours",
    [
        (QA | {"System": "s"}, "System", "system"), (QA | {"systemPrompt": "s"}, "systemPrompt", "system_prompt"),
        (CHAT | {"Tools": [{"name": "f"}]}, "Tools", "tools"), (QA | {"Weight": 0}, "Weight", "weight"),
        ({"instruction": "q", "output": "a", "Input": "i"}, "Input", "input"),
        ({"input_ids": [9, 10], "Labels": [9, 10]}, "Labels", "labels"),
    ],
)  # fmt: skip
def test_a_known_column_written_otherwise(
    tokenizer: PreTrainedTokenizerFast,
    write_jsonl: WriteLines,
    tmp_path: Path,
    row: dict[str, Any],
    theirs: str,
    ours: str,
) -> None:
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "table.parquet")
    for path in (str(write_jsonl("data.jsonl", [row])), str(tmp_path / "table.parquet")):
        with pytest.raises(
            DataError, match=rf"1: the column '{theirs}' is '{ours}' written otherwise.*{ours}: {theirs}"
        ):
            load_mixture([path], tokenizer)
        assert len(load_mixture([{"path": path, "ignore_columns": [theirs]}], tokenizer).dataset) == 1


@pytest.mark.parametrize("key", ["Weight", "toolCalls", "reasoningContent", "Name"])
def test_a_known_key_of_a_turn_written_otherwise(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines, key: str
) -> None:
    path = str(write_jsonl("data.jsonl", [CHAT, {"messages": [U, A | {key: 0}]}]))
    with pytest.raises(DataError, match=rf"line 2: the key '{key}' of a turn in 'messages' is '.*' written otherwise"):
        load_mixture([path], tokenizer)
    assert len(load_mixture([{"path": path, "ignore_columns": [key]}], tokenizer).dataset) == 2


@pytest.mark.parametrize("extra", [{"skip": True}, {"is_trained": False}, {"weights": 0}])
def test_more_keys_of_turns(tokenizer: PreTrainedTokenizerFast, extra: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=rf"message 2 of 'messages': '{next(iter(extra))}'"):
        tokenise_row({"messages": [U, A | extra]}, tokenizer)


def test_two_columns_of_one_name(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    columns = [pa.array([text]) for text in "qab"]
    table = pa.Table.from_arrays(columns, names=["prompt", "completion", "completion"])
    pq.write_table(table, tmp_path / "table.parquet")
    with pytest.raises(DataError, match=r"table\.parquet: has two columns 'completion'"):
        load_mixture([str(tmp_path / "table.parquet")], tokenizer)


def test_an_instruction_that_is_blank(tokenizer: PreTrainedTokenizerFast) -> None:
    for instruction, extra in (("", "x"), ("x", ""), ("x", None), (" ", "x")):
        row = tokenise_row({"instruction": instruction, "input": extra, "output": "a"}, tokenizer)
        assert tokenizer.decode(row.input_ids) == "x\na</s>"
