from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from corebatch.errors import ConfigError, DataError
from corebatch.mixture import TokenRow, tokenise_row
from corebatch.mixture.chat import trained_tokens

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=30).filter(
    lambda text: text.strip() != ""
)
WORDS = {"user": "question {}?", "assistant": "answer {} ok", "system": "be brief"}


def chat(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": WORDS[role].format(i)} for i, role in enumerate(roles)]


def trained_text(row: TokenRow, tokenizer: Any) -> str:
    return str(tokenizer.decode([label for label in row.labels if label != -100]))


def text(row: TokenRow, tokenizer: Any) -> str:
    return str(tokenizer.decode(row.input_ids))


@settings(max_examples=40, deadline=None)
@given(prompt=TEXTS, completion=TEXTS)
def test_the_completion_and_the_end_are_trained_and_nothing_else(
    tokenizer: PreTrainedTokenizerFast, prompt: str, completion: str
) -> None:
    row = tokenise_row({"prompt": prompt, "completion": completion}, tokenizer)
    seam = "" if prompt[-1].isspace() or completion[0].isspace() else "\n"
    assert trained_text(row, tokenizer) == completion + "</s>"
    assert text(row, tokenizer) == f"{prompt}{seam}{completion}</s>"
    assert tokenizer.decode(row.prompt_ids) == f"{prompt}{seam}"
    assert all(label in (-100, token) for token, label in zip(row.input_ids, row.labels, strict=True))


def test_separator_instruction_and_text(tokenizer: PreTrainedTokenizerFast) -> None:
    row = tokenise_row({"prompt": "q:", "completion": " a"}, tokenizer, separator="")
    assert text(row, tokenizer) == "q: a</s>"
    for prompt, completion, expected in (
        ("Q: 1+1\nA:\n", "2", "Q: 1+1\nA:\n2</s>"), ("Q: 7-2\nA:", " 5", "Q: 7-2\nA: 5</s>"),
        ("Q:\u00a0", "2", "Q:\u00a02</s>"), ("", "2", "2</s>"), ("Q", "2", "Q\n2</s>"),
    ):  # fmt: skip
        assert text(tokenise_row({"prompt": prompt, "completion": completion}, tokenizer), tokenizer) == expected
    row = tokenise_row({"prompt": "q\n", "completion": " a"}, tokenizer, separator="=>")
    assert text(row, tokenizer) == "q\n=> a</s>"  # a separator that says something always stands
    row = tokenise_row({"instruction": "add", "input": "1 2", "output": "3"}, tokenizer)
    assert (text(row, tokenizer), trained_text(row, tokenizer)) == ("add\n\n1 2\n3</s>", "3</s>")
    row = tokenise_row({"text": "all of it"}, tokenizer)
    assert text(row, tokenizer) == trained_text(row, tokenizer) == "all of it</s>"
    assert row.trained == len(row.input_ids) - 1  # the first token has no prediction


def test_begin_and_end_of_sequence_stand_once(
    bos_tokenizer: PreTrainedTokenizerFast, bare_tokenizer: PreTrainedTokenizerFast
) -> None:
    for prompt, completion in (("q", "a"), ("<s>q", "a</s>")):
        row = tokenise_row({"prompt": prompt, "completion": completion}, bos_tokenizer)
        assert text(row, bos_tokenizer) == "<s>q\na</s>"
    row = tokenise_row({"text": "t"}, bos_tokenizer)
    assert (text(row, bos_tokenizer), trained_text(row, bos_tokenizer)) == ("<s>t</s>", "t</s>")
    row = tokenise_row({"prompt": "q", "completion": "a"}, bare_tokenizer)
    assert text(row, bare_tokenizer) == "q\na"


@pytest.mark.parametrize(
    "roles, trained",
    [
        (("user", "assistant"), "answer 1 ok<|end|>\n"),
        (("system", "user", "assistant"), "answer 2 ok<|end|>\n"),
        (("user", "assistant", "user", "assistant"), "answer 1 ok<|end|>\nanswer 3 ok<|end|>\n"),
        (("user", "assistant", "user"), "answer 1 ok<|end|>\n"),
        (("assistant", "user", "assistant"), "answer 2 ok<|end|>\n"),  # nothing precedes the first
        (("user",), ""),
    ],
)
def test_only_the_assistants_turns_are_trained(
    tokenizer: PreTrainedTokenizerFast,
    trimming_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    roles: tuple[str, ...],
    trained: str,
) -> None:
    messages = chat(*roles)
    for each in (tokenizer, trimming_tokenizer):
        row = tokenise_row({"messages": messages}, each)
        assert trained_text(row, each) == trained
        assert row.input_ids == each.apply_chat_template(messages, tokenize=True, return_dict=False)
    pieces = tokenise_row({"messages": messages}, _Slow(tokenizer))
    assert trained_text(pieces, tokenizer) == trained
    assert text(pieces, tokenizer) == text(row, tokenizer)


class _Slow:
    """A tokenizer that gives no offsets."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, texts: Any, **options: Any) -> Any:
        assert "return_offsets_mapping" not in options
        return self._tokenizer(texts, **options)


@settings(max_examples=40, deadline=None)
@given(contents=st.lists(TEXTS, min_size=2, max_size=6))
def test_conversations_of_any_text(
    tokenizer: PreTrainedTokenizerFast, trimming_tokenizer: PreTrainedTokenizerFast, contents: list[str]
) -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    expected = "".join(f"{content}<|end|>\n" for content in contents[1::2])
    for each in (tokenizer, trimming_tokenizer):
        assert trained_text(tokenise_row({"messages": messages}, each), each) == expected


def test_train_turns_last_and_lists_as_completion(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = chat("user", "assistant", "user", "assistant")
    last = tokenise_row({"messages": messages}, tokenizer, train_turns="last")
    listed = tokenise_row({"prompt": messages[:3], "completion": messages[3:]}, tokenizer)
    assert trained_text(last, tokenizer) == trained_text(listed, tokenizer) == "answer 3 ok<|end|>\n"


def test_apply_chat_template_to_strings(tokenizer: PreTrainedTokenizerFast) -> None:
    row = tokenise_row({"prompt": "q", "completion": "a"}, tokenizer, apply_chat_template=True)
    assert text(row, tokenizer) == "<|user|>q<|end|>\n<|assistant|>a<|end|>\n"
    assert trained_text(row, tokenizer) == "a<|end|>\n"
    assert tokenizer.decode(row.prompt_ids) == "<|user|>q<|end|>\n<|assistant|>"


def test_the_plain_template(bare_tokenizer: PreTrainedTokenizerFast, bos_tokenizer: PreTrainedTokenizerFast) -> None:
    messages = chat("user", "assistant", "user", "assistant")
    row = tokenise_row({"messages": messages}, bare_tokenizer, chat_template="plain")
    assert text(row, bare_tokenizer) == (
        "user: question 0?\nassistant: answer 1 ok\nuser: question 2?\nassistant: answer 3 ok"
    )
    assert trained_text(row, bare_tokenizer) == " answer 1 ok answer 3 ok"
    row = tokenise_row({"messages": messages[:2]}, bos_tokenizer, chat_template="plain")
    assert text(row, bos_tokenizer) == "<s>user: question 0?\nassistant: answer 1 ok</s>"
    assert trained_text(row, bos_tokenizer) == " answer 1 ok</s>"


def test_no_template(bare_tokenizer: PreTrainedTokenizerFast) -> None:
    for row, options in (
        ({"messages": chat("user", "assistant")}, {}),
        ({"prompt": "q", "completion": "a"}, {"apply_chat_template": True}),
    ):
        with pytest.raises(ConfigError, match=r"need a chat template.*'plain'"):
            tokenise_row(row, bare_tokenizer, **options)


FORGETFUL = (  # as some reasoning models: earlier answers are shortened once a later one is there
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['role'] == 'assistant' and loop.last %}thought{% endif %}{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>thought{% endif %}"
)
COUNTING = (  # the end of a turn depends on what follows, so that no form of it fits into the whole
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if loop.last %}<|end|>{% else %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
EAGER = (  # opens the turn further than a finished turn goes
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>[think]{% endif %}"
)
STRICT = "{% for m in messages %}{{ raise_exception('no system turns, please') }}{% endfor %}"


def test_templates_that_do_not_grow(tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"messages": chat("user", "assistant", "user", "assistant")}
    both = tokenise_row(row, tokenizer, chat_template=FORGETFUL)
    assert text(both, tokenizer) == (
        "<|user|>question 0?<|end|><|assistant|>thoughtanswer 1 ok<|end|>"
        "<|user|>question 2?<|end|><|assistant|>thoughtanswer 3 ok<|end|>"
    )
    assert trained_text(both, tokenizer) == "answer 1 ok<|end|>answer 3 ok<|end|>"
    with pytest.raises(DataError, match=r"turn 2 otherwise.*`train_turns: each`, which keeps all answers"):
        tokenise_row(row, tokenizer, chat_template=COUNTING)
    last = tokenise_row(row, tokenizer, chat_template=FORGETFUL, train_turns="last")
    assert trained_text(last, tokenizer) == "answer 3 ok<|end|>"
    eager = tokenise_row(row, tokenizer, chat_template=EAGER)
    assert trained_text(eager, tokenizer) == "answer 1 ok<|end|>answer 3 ok<|end|>"
    with pytest.raises(DataError, match=r"f.jsonl, line 4: the chat template refuses.*no system turns"):
        tokenise_row(row, tokenizer, chat_template=STRICT, where="f.jsonl, line 4")


def test_truncation_keeps_the_beginning(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = tokenise_row({"prompt": "what is it?", "completion": "the answer is four"}, tokenizer)
    length = len(whole.input_ids)
    assert not whole.truncated
    for cut in range(2, length):
        row = tokenise_row({"prompt": "what is it?", "completion": "the answer is four"}, tokenizer, max_length=cut)
        assert (row.input_ids, row.labels, row.truncated) == (
            whole.input_ids[:cut],
            whole.labels[:cut],
            True,
        )
        assert row.trained == max(whole.trained - (length - cut), 0)


def test_given_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    row = tokenise_row({"input_ids": [9, 8, 7], "labels": [-100, 8, 7]}, tokenizer, max_length=2)
    assert row == TokenRow([9, 8], [-100, 8], truncated=True)
    with pytest.raises(DataError, match=f"below the tokenizer's {len(tokenizer)}. Found 100000"):
        tokenise_row({"input_ids": [9, 100_000], "labels": [9, 9]}, tokenizer)


def test_what_is_blank_or_first_is_not_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenise_row({"prompt": "q", "completion": " \n"}, tokenizer).trained == 0
    assert tokenise_row({"text": ""}, tokenizer).trained == 0
    assert tokenise_row({"messages": [*chat("user"), {"role": "assistant", "content": " "}]}, tokenizer).trained == 0
    assert TokenRow([5, 6], [5, -100]).trained == 0
    assert TokenRow([], []).trained == 0


@settings(max_examples=60, deadline=None)
@given(widths=st.lists(st.integers(0, 4), max_size=12), edges=st.lists(st.integers(0, 30), max_size=6))
def test_tokens_by_spans_agree_with_the_slow_way(widths: list[int], edges: list[int]) -> None:
    """Every token of at least one character, against: does it share a character with a span?"""
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    offsets = [(end - width, end) for end, width in zip(ends, widths, strict=True) if width]
    marks = sorted(set(edges))
    spans = list(zip(marks[0::2], marks[1::2], strict=False))
    slow = [any(set(range(a, b)) & set(range(c, d)) for c, d in spans) for a, b in offsets]
    assert trained_tokens(offsets, spans) == slow


@pytest.mark.parametrize(
    "option", [{"max_length": 1}, {"max_length": True}, {"train_turns": "some"}, {"separator": None}]
)
def test_bad_options(tokenizer: PreTrainedTokenizerFast, option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`{next(iter(option))}`"):
        tokenise_row({"text": "x"}, tokenizer, **option)
