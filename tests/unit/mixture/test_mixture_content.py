"""What a row says reaches the template and the loss, or is refused by file, line and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from mixture_rows import WriteLines
from transformers import PreTrainedTokenizerFast

from corebatch.errors import ConfigError, DataError
from corebatch.mixture import load_mixture, preview_mixture, tokenise_row
from corebatch.mixture.keys import KNOWN_OF_ROWS, KNOWN_OF_TURNS

U1, U2 = {"role": "user", "content": "q1"}, {"role": "user", "content": "q2"}
A1, A2 = {"role": "assistant", "content": "bad"}, {"role": "assistant", "content": "good"}
SHARE = [
    {"from": "human", "value": "q1"}, {"from": "gpt", "value": "bad"},
    {"from": "human", "value": "q2"}, {"from": "gpt", "value": "good"},
]  # fmt: skip
TOOL = {"type": "function", "function": {"name": "weather", "description": "of a town", "parameters": {}}}
RICH = (  # shows tools, thoughts, calls and names
    "{% if shouting %}!{% endif %}{% for t in tools or [] %}<tool>{{ t | tojson }}</tool>{% endfor %}"
    "{% for d in documents or [] %}<doc>{{ d.text }}</doc>{% endfor %}"
    "{% for m in messages %}<|{{ m.role }}|>{% if m.name %}({{ m.name }}){% endif %}"
    "{% if m.reasoning_content %}[{{ m.reasoning_content }}]{% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}{{ c.function.arguments | tojson }}</call>{% endfor %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def shown(row: dict[str, Any], tokenizer: Any, **options: Any) -> tuple[str, str]:
    """The text of a row, and what is trained of it."""
    made = tokenise_row(row, tokenizer, where="f.jsonl, line 4", **options)
    return tokenizer.decode(made.input_ids), tokenizer.decode([x for x in made.labels if x != -100])


@pytest.mark.parametrize("off", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": 0}, {"trainable": False},
                                 {"training": False}, {"loss_weight": 0}, {"loss_mask": 0}])  # fmt: skip
def test_a_turn_of_weight_0_is_not_trained(tokenizer: PreTrainedTokenizerFast, off: dict[str, Any]) -> None:
    on = {key: type(value)(1) for key, value in off.items()}
    plain = shown({"messages": [U1, A1, U2, A2]}, tokenizer)
    for messages in (
        {"messages": [U1, A1 | off, U2, A2 | on]},
        {"messages": [U1 | off, A1 | off, U2, A2]},
        {"conversations": [SHARE[0] | off, SHARE[1] | off, SHARE[2], SHARE[3] | on]},
    ):
        text, trained = shown(messages, tokenizer)
        assert (text, trained) == (plain[0], "good<|end|>\n")
    both = shown({"messages": [U1, A1 | on, U2, A2 | on]}, tokenizer)
    assert both == (plain[0], "bad<|end|>\ngood<|end|>\n") == plain
    with_system = shown({"system": "s", "messages": [U1, A1 | off, U2, A2]}, tokenizer)
    assert with_system[1] == "good<|end|>\n"
    last = shown({"messages": [U1, A1, U2, A2 | off]}, tokenizer, train_turns="last")
    assert last[1] == ""  # the last turn is the last, trained or not
    listed = shown({"prompt": [U1], "completion": [A1 | off, U2, A2]}, tokenizer)
    assert listed[1] == "good<|end|>\n"


@pytest.mark.parametrize(
    "messages, words",
    [
        ([U1, A1 | {"weight": 0.5}], r"message 2 of 'messages': 'weight' should be 0 or 1.*0\.5"),
        ([U1, A1 | {"weight": "0"}], r"'weight' should be 0 or 1"),
        ([U1, A1 | {"loss": 2}], r"'loss' should be 0 or 1"),
        ([U1 | {"weight": 1}, A1], r"message 1 .*only turns of the assistant are trained"),
        ([U1, A1 | {"train_detail": [{"begin_offset": 0}]}], r"message 2 .*'train_detail'.*'weight'"),
        ([U1, A1 | {"prefix": True}], r"'prefix'.*continued"),
        ([U1, A1 | {"refusal": "no"}], r"'refusal'"),
        ([U1, A1 | {"thinking": ["no"]}], r"'thinking' should be a string"),
        ([U1, A1 | {"images": ["a.png"]}], r"'images'.*Only text"),
        ([U1, A1 | {"rejected": "x"}], r"'rejected'"),
        ([{"role": "system", "content": "s", "tools": [TOOL]}, U1, A1], r"'tools'.*column 'tools'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, A1], r"part 1 of 'content'.*image_url"),
        ([{"role": "user", "content": [{"type": {"a": 1}}]}, A1], r"part 1 of 'content'.*Found \{'a': 1\}"),
        ([{"role": "user", "content": [{"type": ["text"]}]}, A1], r"part 1 of 'content' should be a text"),
        ([U1, A1 | {"tool_calls": [{"function": {"arguments": "{}"}}]}], r"message 2.*'tool_calls'.*'name'"),
        ([U1, A1 | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], r"message 2.*'arguments'"),
        ([U1, {"from": "gpt", "value": "x", "weight": 0}, {"role": "gpt", "content": "x"}], r"'from' should be one of"),
    ],
)  # fmt: skip
def test_keys_of_turns_are_refused_by_name(tokenizer: PreTrainedTokenizerFast, messages: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=f"(?s)f.jsonl, line 4: {words}" if words[0] == "m" else f"(?s)line 4.*{words}"):
        shown({"messages": messages}, tokenizer, chat_template=RICH)


def test_empty_known_keys_say_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    nothing = {"weight": None, "images": [], "tool_calls": None, "reasoning_content": "", "prefix": False, "name": None}
    assert shown({"messages": [U1, A1 | nothing]}, tokenizer) == shown({"messages": [U1, A1]}, tokenizer)


SYSTEM_TEXT = "<|system|>be a pirate<|end|>\n<|user|>q1<|end|>\n<|assistant|>bad<|end|>\n"


@pytest.mark.parametrize(
    "row",
    [
        {"system": "be a pirate", "messages": [U1, A1]},
        {"system_prompt": "be a pirate", "conversations": SHARE[:2]},
        {"system": "be a pirate", "messages": [{"role": "system", "content": "be a pirate"}, U1, A1]},
        {"system": "be a pirate", "instruction": "q1", "input": "", "output": "bad"},
        {"system": "be a pirate", "prompt": "q1", "completion": "bad"},
        {"system": "be a pirate", "prompt": [U1], "completion": [A1]},
    ],
)
def test_a_system_column_is_the_first_turn(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> None:
    assert shown(row, tokenizer, apply_chat_template=True) == (SYSTEM_TEXT, "bad<|end|>\n")


def test_what_only_a_template_can_show(tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"instruction": "q2", "output": "good", "history": [["q1", "bad"]], "system": "s"}
    text, trained = shown(row, tokenizer, apply_chat_template=True)
    assert text.startswith("<|system|>s<|end|>\n<|user|>q1<|end|>\n<|assistant|>bad<|end|>\n<|user|>q2")
    assert trained == "bad<|end|>\ngood<|end|>\n"
    with pytest.raises(DataError, match=r"line 4: 'system', 'history'.*`apply_chat_template: true`.*ignore_columns"):
        shown(row, tokenizer)
    thought = {"prompt": "q", "completion": "a", "reasoning": "since"}
    assert shown(thought, tokenizer, apply_chat_template=True, chat_template=RICH)[1] == "[since]a<|end|>"
    with pytest.raises(DataError, match="'system' and 'system_prompt' are two system prompts"):
        shown({"system": "a", "system_prompt": "b", "messages": [U1, A1]}, tokenizer)
    with pytest.raises(DataError, match=r"column 'system' and the first turn.*differ"):
        shown({"system": "a", "messages": [{"role": "system", "content": "b"}, U1, A1]}, tokenizer)


def test_tools_documents_thoughts_and_calls_reach_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Oslo"}}}
    messages = [
        U1,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
        A2,
    ]
    for tools in ([TOOL], json.dumps([TOOL]), TOOL):
        text, trained = shown({"messages": messages, "tools": tools}, tokenizer, chat_template=RICH)
        assert text.startswith("<tool>" + json.dumps(TOOL) + "</tool><|user|>q1")
        assert trained == '<call>weather{"town": "Oslo"}</call><|end|>good<|end|>'
    string = {"type": "function", "function": {"name": "weather", "arguments": '{"town":"Oslo"}'}}
    for spelt in (
        {"messages": [U1, {"role": "assistant", "tool_calls": [string]}, *messages[2:]],
         "functions": [TOOL["function"]]},
        {"messages": [U1, {"role": "assistant", "content": None, "function_call": string["function"]}, *messages[2:]],
         "tools": [TOOL]},
        {"conversations": [SHARE[0], {"from": "function_call", "value": json.dumps(call["function"])},
                           {"from": "observation", "value": "rain"}, SHARE[3]], "tools": [TOOL]},
    ):  # fmt: skip
        assert shown(spelt, tokenizer, chat_template=RICH)[1] == trained  # a string is not quoted twice
    for key in ("reasoning_content", "thinking", "reasoning"):
        assert shown({"messages": [U1, A2 | {key: "since"}]}, tokenizer, chat_template=RICH)[1] == "[since]good<|end|>"
    parts = {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "since"}, {"type": "text", "text": "good"}],
    }
    assert shown({"messages": [U1, parts]}, tokenizer, chat_template=RICH)[1] == "[since]good<|end|>"
    row = {"messages": [U1, A2], "documents": [{"text": "facts"}], "chat_template_kwargs": '{"shouting": true}'}
    assert shown(row, tokenizer, chat_template=RICH)[0].startswith("!<doc>facts</doc><|user|>")


@pytest.mark.parametrize(
    "row, words",
    [
        ({"messages": [U1, A1 | {"reasoning_content": "since"}]}, r"message 2 \(assistant\): its 'reasoning_content'"),
        ({"messages": [U1, A1], "tools": [TOOL]}, r"a tool \('tools'\)"),
        ({"messages": [U1, A1], "documents": [{"text": "facts"}]}, r"a document"),
        ({"messages": [U1, A1], "enable_thinking": False}, r"option 'enable_thinking'"),
        ({"messages": [U1 | {"name": "Bob"}, A1]}, r"message 1 \(user\): its 'name'"),
        (
            {"messages": [U1, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]}]},
            r"its 'tool_calls'",
        ),
    ],
)
def test_what_the_template_drops_is_named(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=rf"f.jsonl, line 4: the chat template does not show .*{words}.*ignore_columns"):
        shown(row, tokenizer, chat_template="{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}{% endfor %}")


def test_a_template_that_drops_a_turn_is_refused_even_where_its_word_stands_elsewhere(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    deaf = "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(DataError, match=r"does not show message 1 \(system\): its content"):
        shown({"messages": [{"role": "system", "content": "a"}, U1, A1]}, tokenizer, chat_template=deaf)
    only_first = (
        "{% for m in messages %}{% if m.role != 'system' or loop.first %}<|{{ m.role }}|>{{ m.content }}<|end|>"
        "{% endif %}{% endfor %}"
    )
    system = {"role": "system", "content": "as said"}
    assert shown({"messages": [system, U1, A1]}, tokenizer, chat_template=only_first)
    with pytest.raises(DataError, match=r"does not show message 4 \(system\): its content"):
        shown({"messages": [system, U1, A1, system, U2, A2]}, tokenizer, chat_template=only_first)


def test_the_path_of_a_template(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}")
    row = {"messages": [U1, A1]}
    assert shown(row, tokenizer, chat_template=str(file))[0] == "<user>q1</s><assistant>bad</s>"
    for name in (str(tmp_path / "other.jinja"), "chatml", "qwen3"):
        with pytest.raises(ConfigError, match="renders no message: it should be a Jinja template, the path"):
            shown(row, tokenizer, chat_template=name)
    with pytest.raises(DataError, match="renders no message: it should be a Jinja template"):
        shown(row, tokenizer, chat_template="{{ bos_token }}hello")
    with pytest.raises(DataError, match="chat template refuses"):
        shown(row, tokenizer, chat_template="{% for m in messages %}")
    file.write_text(" \n")
    with pytest.raises(ConfigError, match="is empty"):
        shown(row, tokenizer, chat_template=str(file))


@pytest.mark.parametrize(
    "extra, key",
    [
        ({"label": False}, "label"), ({"label": "False"}, "label"), ({"label": 0}, "label"),
        ({"kto_tag": True}, "kto_tag"), ({"chosen": "a"}, "chosen"), ({"rejected": [A1]}, "rejected"),
        ({"rejected_response": "x"}, "rejected_response"), ({"score": 0.5}, "score"),
        ({"context": "x"}, "context"), ({"images": ["a"]}, "images"),
        ({"audios": ["a"]}, "audios"), ({"weight": 2}, "weight"), ({"sample_weight": 0.1}, "sample_weight"),
        ({"completion_mask": [1]}, "completion_mask"),
    ],
)  # fmt: skip
def test_columns_that_would_be_lost_are_refused(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines, extra: dict[str, Any], key: str
) -> None:
    row = {"prompt": "q", "completion": "a"}
    path = write_jsonl("data.jsonl", [row | dict.fromkeys(extra), row | extra])
    with pytest.raises(DataError, match=rf"data.jsonl, line 2: '{key}' \(.*`ignore_columns: \[{key}\]`"):
        load_mixture([str(path)], tokenizer)
    with pytest.raises(DataError, match=rf"line 2: '{key}'"):
        preview_mixture([str(path)], tokenizer)
    kept = load_mixture([{"path": str(path), "ignore_columns": [key]}], tokenizer)
    assert len(kept.dataset) == 2
    assert kept.unused_columns == {}


def test_text_cannot_show_a_system_prompt(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    path = write_jsonl("labels.jsonl", [{"text": "t", "label": 0, "score": 0.5}])  # of a classifier: not ours
    assert load_mixture([str(path)], tokenizer).unused_columns == {str(path): ("label", "score")}
    path = write_jsonl("names.jsonl", [{"prompt": "t", "completion": "a", "label": "sports", "weight": 1}])
    assert load_mixture([str(path)], tokenizer).unused_columns == {str(path): ("label", "weight")}
    path = write_jsonl("data.jsonl", [{"text": "t", "system": "s", "label": 3}])
    with pytest.raises(DataError, match=r"line 1: 'system' \(system prompt\) is not used by rows of the form text"):
        load_mixture([str(path)], tokenizer)


def test_unknown_columns_are_allowed_and_listed(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    rows = [
        {"messages": [U1 | {"ts": 3}, A1], "id": 1},
        {"messages": [U1, A1], "lang": "en", "source": "s", "tools": None},
    ]
    path = str(write_jsonl("data.jsonl", rows))
    for made in (load_mixture([path], tokenizer), preview_mixture([path], tokenizer)):
        assert made.unused_columns == {path: ("id", "lang", "messages.ts")}
    assert load_mixture([{"path": path, "ignore_columns": ["id", "ts"]}], tokenizer).unused_columns == {path: ("lang",)}


def test_keys_of_turns_can_be_ignored_on_purpose(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    path = str(write_jsonl("data.jsonl", [{"messages": [U1, A1 | {"reasoning_content": "since", "weight": 0.5}]}]))
    spec = {"path": path, "ignore_columns": ["reasoning_content", "weight"]}
    mixture = load_mixture([spec], tokenizer)
    assert mixture.text(0, tokenizer) == "<|user|>q1<|end|>\n<|assistant|>bad<|end|>\n"


def test_columns_are_renamed(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines, tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a", "prompt": "other", "topic": "maths"}]
    lines = str(write_jsonl("data.jsonl", rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    for path in (lines, str(tmp_path / "data.parquet")):
        spec = {"path": path, "columns": {"prompt": "question", "completion": "answer", "source": "topic"}}
        mixture = load_mixture([spec], tokenizer)
        assert mixture.text(0, tokenizer) == "q\na</s>"
        assert list(mixture.counts) == ["maths"]
        assert set(mixture.unused_columns.get(path, ())) == {"prompt"}
    swapped = load_mixture([{"path": lines, "columns": {"prompt": "answer", "completion": "prompt"}}], tokenizer)
    assert swapped.text(0, tokenizer) == "a\nother</s>"


@pytest.mark.parametrize(
    "spec, error, words",
    [
        ({"columns": {"promt": "question"}}, ConfigError, r"Found 'promt' \(did you mean 'prompt'\?\)"),
        ({"columns": {"prompt": "qestion", "completion": "answer"}}, DataError,
         r"line 1: `columns` maps prompt to 'qestion', which is not there \(did you mean 'question'\?\).*'answer'"),
        ({"columns": {"prompt": "answer", "completion": "answer"}}, ConfigError, "each column of the file once"),
        ({"columns": ["prompt"]}, ConfigError, "`columns` of .* should map"),
        ({"columns": {"prompt": 3}}, ConfigError, "`columns` of .* should map"),
        ({"ignore_columns": "label"}, ConfigError, "`ignore_columns` of .* list of names"),
        ({"columns": {"prompt": "question"}, "ignore_columns": ["question"]}, ConfigError, "stands in `columns` and"),
        ({}, DataError, r"Perhaps `columns: \{prompt: question, completion: answer\}`"),
        ({"columns": {"prompt": "question", "completion": "answer"}}, DataError,
         r"line 2: the column 'answer' \(completion\) is missing"),
    ],
)  # fmt: skip
def test_bad_columns(
    tokenizer: PreTrainedTokenizerFast,
    write_jsonl: WriteLines,
    spec: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    path = write_jsonl("data.jsonl", [{"question": "q", "answer": "a"}, {"question": "q"}])
    with pytest.raises(error, match=words):
        load_mixture([{"path": str(path), **spec}], tokenizer)


def test_nulls_that_arrow_fills_in_are_not_rendered(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    other = {"type": "function", "function": {"name": "time", "description": "now", "parameters": {"zone": "x"}}}
    one = {"type": "function", "function": {"name": "weather", "description": "of a town", "parameters": {"town": "y"}}}
    rows = [{"messages": [U1, A1], "tools": [one]}, {"messages": [U1, A1], "tools": [other]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    mixture = load_mixture([str(tmp_path / "data.parquet")], tokenizer, chat_template=RICH)
    assert mixture.text(1, tokenizer).startswith(f"<tool>{json.dumps(other)}</tool>")


def test_each_answer_a_row(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    rows = [{"messages": [U1, A1, U2, A2]}, {"messages": [U1, A1 | {"weight": 0}, U2, A2]}, {"messages": [U1, A1]}]
    path = str(write_jsonl("data.jsonl", rows))
    mixture = load_mixture([path], tokenizer, train_turns="each")
    trained = [tokenizer.decode([x for x in row["labels"] if x != -100]) for row in mixture.dataset]
    assert trained == ["bad<|end|>\n", "good<|end|>\n", "good<|end|>\n", "bad<|end|>\n"]
    assert mixture.text(0, tokenizer) == "<|user|>q1<|end|>\n<|assistant|>bad<|end|>\n"
    with pytest.raises(ConfigError, match="makes 2 rows"):
        tokenise_row(rows[0], tokenizer, train_turns="each")


def test_masks_of_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    for masks in ({"completion_mask": [0, 1, 1]}, {"assistant_masks": [False, True, True]},
                  {"labels": [7, 8, 9], "loss_mask": [0, 1, 1]}):  # fmt: skip
        assert tokenise_row({"input_ids": [7, 8, 9], **masks}, tokenizer).labels == [-100, 8, 9]
    assert tokenise_row({"input_ids": [7, 8, 9]}, tokenizer).labels == [7, 8, 9]
    with pytest.raises(DataError, match=r"'completion_mask' should hold 0 and 1. Found 2"):
        tokenise_row({"input_ids": [7, 8], "completion_mask": [0, 2]}, tokenizer)


def test_the_docs_name_every_known_key() -> None:
    page = (Path(__file__).parents[3] / "docs" / "running" / "data.md").read_text(encoding="utf-8")
    names = {*KNOWN_OF_ROWS, *KNOWN_OF_TURNS}
    assert sorted(name for name in names if f"`{name}`" not in page) == []
