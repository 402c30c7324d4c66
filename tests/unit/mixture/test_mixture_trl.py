"""Conversations are tokenised as TRL tokenises them for training on answers alone, row by row.

Expected ids and labels come from TRL's own training templates. Rows that TRL would train without something
that they say are refused here, with all answers still possible.
"""

from __future__ import annotations

import copy
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from corebatch.errors import DataError
from corebatch.mixture import load_mixture, tokenise_row

utils = pytest.importorskip("trl.chat_template_utils", reason="the extra trl is not installed")
templates = Path(utils.__file__).parent / "chat_templates"
if not (templates / "qwen3_training.jinja").exists():
    pytest.skip("this TRL has no training templates", allow_module_level=True)

EXAMPLES = Path(__file__).parents[3] / "examples"
TOOL = {"type": "function", "function": {"name": "weather", "description": "of a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}}}  # fmt: skip
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Oslo"}}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Talk like a pirate."}
ONE = {"messages": [user("2+2?"), answer("4")]}
MANY = {"messages": [SYSTEM, user("Hi there"), answer("Hello!"), user("2+2?"), answer("4"), user("Thanks")]}
THOUGHT = {"messages": [user("2+2?"), answer("4", reasoning_content="2+2 is 4")]}
THOUGHTS = {"messages": [*THOUGHT["messages"], user("And 3+3?"), answer("6", reasoning_content="3+3 is 6")]}
INLINE = {"messages": [user("2+2?"), answer("<think>\n2+2 is 4\n</think>\n\n4"), user("Sure?"), answer("Yes")]}
CALLS = {"messages": [user("Weather in Oslo?"), answer("", tool_calls=[CALL]),
                      {"role": "tool", "name": "weather", "content": "rain"}, answer("It rains."),
                      user("And now?"), answer("Still.")], "tools": [TOOL]}  # fmt: skip
TOOLS = {"messages": MANY["messages"], "tools": [TOOL]}

THINKING = ("qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8")
PLAIN = ("qwen3_instruct_2507", "qwen3_vl", "qwen2_5_vl", "llama3", "gemma3", "cohere", "phi3", "lfm2_v2")
OTHER_MASKS = ("qwen2_5", "gptoss", "glm4moe", "deepseekv3")


def with_template(tokenizer: PreTrainedTokenizerFast, name: str) -> PreTrainedTokenizerFast:
    if not (templates / f"{name}_training.jinja").exists():
        pytest.skip(f"this TRL has no training template for {name}")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (templates / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


def by_trl(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """(ids, labels) of TRL's preparation with `assistant_only_loss`; turns of weight 0 taken out of the labels."""
    messages = [{key: turn[key] for key in turn if key != "weight"} for turn in copy.deepcopy(row["messages"])]
    tools = row.get("tools")
    made = tokenizer.apply_chat_template(
        messages,
        tools=json.loads(tools) if isinstance(tools, str) else tools,
        chat_template=utils.get_training_chat_template(tokenizer),
        tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
    )  # fmt: skip
    weights = [turn.get("weight", 1) for turn in row["messages"] if turn["role"] == "assistant"]
    labels, ids = [], iter(made["input_ids"])
    for marked, run in groupby(made["assistant_masks"]):
        trained = marked and weights.pop(0)
        labels += [token if trained else -100 for _, token in zip(list(run), ids, strict=False)]
    return made["input_ids"], labels


def same(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, **options: Any) -> bool:
    ours = tokenise_row(copy.deepcopy(row), tokenizer, 4096, **options)
    return (ours.input_ids, ours.labels) == by_trl(row, tokenizer)


@pytest.mark.parametrize("row", [ONE, MANY, THOUGHT, THOUGHTS, INLINE, CALLS, TOOLS])
@pytest.mark.parametrize("name", THINKING)
def test_templates_that_drop_earlier_thoughts(
    tokenizer: PreTrainedTokenizerFast, name: str, row: dict[str, Any]
) -> None:
    tokenizer = with_template(tokenizer, name)
    assert same(row, tokenizer)
    assert same(row, tokenizer, chat_template="trl")


@pytest.mark.parametrize("row", [ONE, MANY])
@pytest.mark.parametrize("name", PLAIN)
def test_templates_that_do_not_think(tokenizer: PreTrainedTokenizerFast, name: str, row: dict[str, Any]) -> None:
    tokenizer = with_template(tokenizer, name)
    assert same(row, tokenizer)
    with pytest.raises(DataError, match="its 'reasoning_content'"):
        tokenise_row(THOUGHT, tokenizer)


@pytest.mark.parametrize("row", [ONE, MANY, THOUGHT, CALLS, TOOLS])
@pytest.mark.parametrize("name", OTHER_MASKS)
def test_trls_template_gives_trls_marks(tokenizer: PreTrainedTokenizerFast, name: str, row: dict[str, Any]) -> None:
    """Where TRL marks more than the answer (a header, what ends it), or has mended the template: by name."""
    tokenizer = with_template(tokenizer, name)
    if row in {"qwen2_5": [THOUGHT], "deepseekv3": [THOUGHT, CALLS, TOOLS]}.get(name, []):
        with pytest.raises(DataError, match="does not show"):  # TRL trains such a row without what it says
            tokenise_row(row, tokenizer, 4096, chat_template="trl")
    else:
        assert same(row, tokenizer, chat_template="trl")


def test_weights_take_turns_out_of_the_labels(tokenizer: PreTrainedTokenizerFast) -> None:
    for name in ("qwen3", "qwen3_instruct_2507", "phi3"):
        for weights in ((0, 1), (1, 0), (1, 1)):
            first, second = (answer(text, weight=weight) for text, weight in zip(("Hello!", "4"), weights, strict=True))
            row = {"messages": [user("Hi"), first, user("2+2?"), second]}
            assert same(row, with_template(tokenizer, name))
            if name != "phi3":
                assert same(row, with_template(tokenizer, name), chat_template="trl")


def test_thoughts_that_trl_would_drop_are_refused_and_each_keeps_them(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(THOUGHTS) + "\n")
    for name in ("glm4moe", "nemotron_3_nano", "gptoss"):
        named = with_template(tokenizer, name)
        for template in (None, "trl"):
            with pytest.raises(DataError, match=r"data.jsonl, line 1: .*(`train_turns: each`|'reasoning_content')"):
                load_mixture([str(path)], named, chat_template=template, max_length=4096)
        rows = load_mixture([str(path)], named, train_turns="each", max_length=4096).dataset
        trained = [named.decode([label for label in row["labels"] if label != -100]) for row in rows]
        assert ["2+2 is 4" in trained[0], "3+3 is 6" in trained[1]] == [True, True]


def test_cases_of_templates(tokenizer: PreTrainedTokenizerFast) -> None:
    thought = tokenise_row(THOUGHT, qwen := with_template(tokenizer, "qwen3"))
    trained = qwen.decode([label for label in thought.labels if label != -100])
    assert trained == "<think>\n2+2 is 4\n</think>\n\n4<|im_end|>\n"
    tools = {"messages": [user("Weather?"), answer("<tool_call>weather</tool_call>")], "tools": [TOOL]}
    old = with_template(tokenizer, "qwen2_5")
    assert tokenise_row(tools, old).input_ids == old.apply_chat_template(
        tools["messages"], tools=[TOOL], tokenize=True, return_dict=False
    )
    assert "# Tools" in old.decode(tokenise_row(tools, old).input_ids)
    system = {"system": "Arr.", "instruction": "Greet", "output": "Ahoy"}
    text = old.decode(tokenise_row(system, old, apply_chat_template=True).input_ids)
    assert text.startswith("<|im_start|>system\nArr.<|im_end|>\n")
    assert "created by Alibaba" not in text


def test_the_chat_example_is_tokenised_as_by_trl(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows of examples/chat.yaml: system prompts, tools, weights, thoughts, several answers, other names."""
    monkeypatch.chdir(EXAMPLES.parent)
    config = yaml.safe_load((EXAMPLES / "chat.yaml").read_text())
    tokenizer = with_template(tokenizer, "qwen3")
    options = {key: config[key] for key in ("apply_chat_template", "train_turns", "max_length")}
    mixture = load_mixture(config["datasets"], tokenizer, **options)
    expected = [row for entry in config["datasets"] for row in _as_messages(EXAMPLES.parent / entry["path"])]
    assert len(mixture.dataset) == len(expected) == 10
    for ours, row in zip(mixture.dataset, expected, strict=True):
        assert (ours["input_ids"], ours["labels"]) == by_trl(row, tokenizer)
    assert list(mixture.counts) == ["tutor", "tools", "pirate", "faq"]
    assert mixture.unused_columns == {}


def _as_messages(path: Path) -> list[dict[str, Any]]:
    """The rows of the example as TRL takes them, written out once more by hand."""
    rows = []
    for row in map(json.loads, path.read_text().splitlines()):
        if path.stem == "faq":
            row = {"system": row["tone"], "messages": [user(row["question"]), answer(row["answer"])]}
        if "conversations" in row:
            roles = {"human": "user", "gpt": "assistant"}
            row["messages"] = [
                {"role": roles[turn["from"]], "content": turn["value"], "weight": turn.get("weight", 1)}
                for turn in row["conversations"]
            ]
        for turn in row["messages"]:
            if isinstance(turn["content"], list):
                turn["content"] = "".join(part["text"] for part in turn["content"])
        if "system" in row:
            row["messages"].insert(0, {"role": "system", "content": row["system"]})
        rows.append(row)
    return rows
