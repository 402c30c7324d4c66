from __future__ import annotations

from typing import Any

import pytest

from corebatch.errors import DataError
from corebatch.mixture import FORMS, Chat, Completion, Text, TokenIds, canonical, detect_form

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"input_ids": [1, 2], "labels": [-100, 2]}, TokenIds([1, 2], [-100, 2])),
        (
            {"input_ids": [0, 1, 2], "labels": [-100, -100, 2], "attention_mask": [0, 1, 1]},
            TokenIds([1, 2], [-100, 2]),
        ),
        ({"messages": [USER, ANSWER]}, Chat([USER, ANSWER])),
        ({"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}}, Chat([USER, ANSWER])),
        ({"messages": [USER | {"name": None, "tool_calls": None}, ANSWER]}, Chat([USER, ANSWER])),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            Chat([USER, ANSWER]),
        ),
        (
            {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
            Chat([USER, ANSWER]),
        ),
        ({"conversations": [USER, ANSWER]}, Chat([USER, ANSWER])),
        ({"prompt": "q", "completion": "a"}, Completion("q", "a")),
        ({"prompt": [USER], "completion": [ANSWER]}, Chat([USER, ANSWER], first_trained=1)),
        ({"instruction": "q", "output": "a"}, Completion("q", "a")),
        ({"instruction": "q", "input": None, "output": "a"}, Completion("q", "a")),
        ({"instruction": "q", "input": " ", "output": "a"}, Completion("q", "a")),
        ({"instruction": "q", "input": "x", "output": "a"}, Completion("q\n\nx", "a")),
        ({"text": "t", "other": object()}, Text("t")),
    ],
)
def test_every_form(row: dict[str, Any], expected: Any) -> None:
    assert canonical(row) == expected


def test_the_order_decides_between_forms() -> None:
    everything = {name for form in FORMS for name in form.columns}
    for form in FORMS:
        assert detect_form(everything, "x") is form
        everything -= set(form.columns)


def test_no_form_lists_what_was_found_and_what_is_expected() -> None:
    with pytest.raises(DataError, match=r"row 3.*'question', 'answer'.*prompt \+ completion.*text"):
        canonical({"question": "q", "answer": "a"}, "row 3")
    for row, hint in (
        ({"question": "q", "answer": "a"}, r"columns: \{prompt: question, completion: answer\}"),
        ({"instruction": "q", "response": "a"}, r"columns: \{prompt: instruction, completion: response\}"),
        ({"dialog": []}, r"columns: \{messages: dialog\}"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, r"preferences.*columns: \{completion: chosen\}"),
        ({"a": 1}, r"columns: \{prompt: \.\.\., completion"),
    ):
        with pytest.raises(DataError, match=hint):
            canonical(row, "row 3")


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": None}, "'text' should be a string. Found null"),
        ({"text": 3}, r"'text' should be a string. Found 3 \(int\)"),
        ({"text": "\ud800"}, "surrogate"),
        ({"prompt": "q", "completion": None}, "'completion' should be a string. Found null"),
        ({"prompt": None, "completion": "a"}, "'prompt' should be a string. Found null"),
        ({"prompt": None, "completion": None}, "'prompt' should be a list of messages.*null"),
        ({"prompt": "q", "completion": [ANSWER]}, "'completion' should be a string"),
        ({"instruction": "q", "input": 3, "output": "a"}, "'input' should be a string"),
        ({"messages": []}, "not empty"),
        ({"messages": "hello"}, "should be a list of messages"),
        ({"messages": [USER, "a"]}, r"Found 'a' \(str\) in it"),
        ({"messages": [USER, {"role": "bot", "content": "a"}]}, "message 2.*'role' should be one of.*'bot'"),
        ({"messages": [{"role": "user"}]}, "message 1.*'content' should be a string. Found null"),
        ({"messages": [ANSWER | {"tool_calls": [{}]}]}, "tool_calls"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "turn 1.*'narrator'"),
        ({"input_ids": [1, 2], "labels": [1]}, "one length. Found 2 and 1"),
        ({"input_ids": [1, -2], "labels": [1, 2]}, "negative"),
        ({"input_ids": [1, 2], "labels": [1, -1]}, "-100. Found -1"),
        ({"input_ids": [], "labels": []}, "empty"),
        ({"input_ids": [1.5], "labels": [1]}, "list of integers"),
        ({"input_ids": "12", "labels": [1]}, "list of integers"),
        ({"input_ids": [1], "labels": [1], "attention_mask": [1, 1]}, "attention_mask"),
    ],
)
def test_a_bad_cell_names_row_and_column(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"(?s)f.jsonl, line 9.*{message}"):
        canonical(row, "f.jsonl, line 9")


def test_a_row_without_a_column_of_its_form() -> None:
    form = detect_form(["prompt", "completion"], "x")
    with pytest.raises(DataError, match="line 2: the column 'completion' of the form prompt and completion"):
        canonical({"prompt": "q", "text": "t"}, "line 2", form)
