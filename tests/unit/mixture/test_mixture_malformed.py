"""Thousands of rows that somebody may have written: each is tokenised, or refused with its line. No traceback."""

from __future__ import annotations

import random
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from corebatch.errors import CorebatchError
from corebatch.mixture.columns import Columns
from corebatch.mixture.formats import FORMS, canonical
from corebatch.mixture.keys import KNOWN_OF_ROWS, KNOWN_OF_TURNS
from corebatch.mixture.rows import RawRow
from corebatch.mixture.spec import DatasetSpec
from corebatch.mixture.tokenise import TokeniseOptions, Tokeniser

CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
VALUES: list[Any] = [
    None, "", "x", "[]", "{}", "[1]", '{"a": 1}', "null", 0, 1, 1.0, 0.5, True, False, 10**400, float("nan"),
    float("inf"), b"x", [], {}, [1], ["a"], [None], [[]], [{}], {"a": 1}, {"name": "f"}, [CALL], CALL,
    "\ud800", [["q", "a"]],
    [{"type": "text", "text": "t"}], [{"type": "text"}], [{"type": "image"}], "<think>x</think>y", "</think>",
    "{{ x }}", "a" * 300, [{"name": "\ud800"}],
    [{"name": "f", "description": None, "parameters": None}], [{"function": None}], [{"function": {"name": 3}}],
    [{"name": "f", "arguments": [1]}], [{"name": "f", "arguments": "[1]"}],
]  # fmt: skip
ROLES = ["user", "assistant"] * 4 + ["system", "tool", "function_call", "observation", "gpt", None, 3]
KEEPING = (  # shows much, as it comes
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}<|{{ m.role }}|>"
    "{{ m.reasoning_content or '' }}{{ m.content or '' }}{{ (m.tool_calls or '') | string }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FORGETFUL = (  # an earlier answer is written otherwise
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}!{% endif %}{{ m.content }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [None, KEEPING, FORGETFUL, MARKED], ids=["chat", "keeping", "forgetful", "marked"])
@pytest.mark.parametrize("turns", ["all", "last", "each"])
def test_malformed_rows(tokenizer: PreTrainedTokenizerFast, template: str | None, turns: str) -> None:
    options = TokeniseOptions(chat_template=template, train_turns=turns, apply_chat_template=turns != "last")
    tokeniser, generator = Tokeniser(tokenizer, options), random.Random(f"{template} {turns}")
    columns = Columns.of(DatasetSpec("f.jsonl"), "source")
    outcomes = [_outcome(_row(generator), tokeniser, columns, generator.random() < 0.5) for _ in range(300)]
    assert 30 < sum(outcomes) < 270


def _outcome(row: dict[str, Any], tokeniser: Tokeniser, columns: Columns, from_table: bool) -> bool:
    """Whether the row is tokenised; else it must have been refused with its line."""
    where = "f.jsonl, line 1"
    try:
        form = columns.form(tuple(row), where)
        values = columns.row(RawRow("f.jsonl", "line", 1, row), form, from_table)
        for one in tokeniser.each(canonical(values, where, form), where):
            (made,) = tokeniser([one], [where])
            assert len(made.input_ids) == len(made.labels)
            assert all(label in (-100, token) for token, label in zip(made.input_ids, made.labels, strict=True))
    except CorebatchError as error:
        refusal = str(error)
    else:
        return True
    assert where in refusal
    return False


def _row(generator: random.Random) -> dict[str, Any]:
    form = generator.choice(FORMS)
    lists = form.name == "prompt and completion" and generator.random() < 0.5
    row: dict[str, Any] = {name: "q" for name in form.columns}
    if form.name == "tokens":
        row["input_ids"] = [7, 8, 9]
    for name in row:
        if name in ("messages", "conversations") or lists:
            row[name] = [_turn(generator) for _ in range(generator.randint(0, 5))]
    for name in generator.choices(
        [*KNOWN_OF_ROWS, "labels", "attention_mask", "input"], k=generator.choice([0, 0, 1, 2])
    ):
        row[name] = generator.choice(VALUES)
    return row


def _turn(generator: random.Random) -> Any:
    turn: dict[str, Any] = {
        "role": generator.choice(ROLES),
        "content": generator.choice(["q", "a", "<think>t</think>x"]),
    }
    if generator.random() < 0.2:
        turn[generator.choice([*KNOWN_OF_TURNS, "else"])] = generator.choice(VALUES)
    if generator.random() < 0.02:
        turn.pop(generator.choice(list(turn)))
    return turn if generator.random() < 0.98 else generator.choice(VALUES)
