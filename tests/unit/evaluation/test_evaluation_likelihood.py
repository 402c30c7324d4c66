"""Likelihoods against a slow twin: one option at a time, one token at a time, without padding."""

import math
from typing import Any

import pytest
import torch

from corebatch.errors import ConfigError, DataError, NonFiniteError
from corebatch.evaluation import ChoiceItem, LikelihoodTask, evaluate, option_scores

PROMPTS = ["Is 4 even?", "The cat", "x = 12 + 5, so x =", "a"]
OPTIONS = [
    (" yes", " no", " maybe so"),
    (" sat", " flew over the moon"),
    (" 17", " 7", " 170", " 1.7"),
    ("b", "c"),  # one token each
]


def slow(model: Any, tokenizer: Any, prompt: str, option: str) -> float:
    """Sum of log-probabilities of the option's tokens (characters here: no token spans a border)."""
    prompt_ids, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + option))
    assert whole[: len(prompt_ids)] == prompt_ids
    total = 0.0
    model.eval()
    for t in range(len(prompt_ids), len(whole)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([whole[:t]])).logits[0, -1]
        total += torch.log_softmax(logits.double(), 0)[whole[t]].item()
    return total


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_equal_to_one_by_one(model: Any, tokenizer: Any, batch_size: int) -> None:
    scores = option_scores(model, tokenizer, PROMPTS, OPTIONS, batch_size=batch_size, progress=False)
    for prompt, options, row in zip(PROMPTS, OPTIONS, scores, strict=True):
        for option, score in zip(options, row, strict=True):
            assert score.log_prob == pytest.approx(slow(model, tokenizer, prompt, option), abs=1e-10)
            assert score.tokens == len(option)
            assert score.bytes == len(option.strip())
            assert score.value("tokens") == score.log_prob / len(option)
            assert score.value("bytes") == score.log_prob / len(option.strip())


def test_options_of_one_token_take_one_forward(model: Any, tokenizer: Any) -> None:
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    found = option_scores(model, tokenizer, ["abc", "ab"], [("1", "2", "3"), ("x", "y")], progress=False)
    hook.remove()
    assert shapes == [(2, 4)]
    for prompt, options, row in zip(["abc", "ab"], [("1", "2", "3"), ("x", "y")], found, strict=True):
        expected = [slow(model, tokenizer, prompt, option) for option in options]
        assert [score.log_prob for score in row] == pytest.approx(expected, abs=1e-10)


def test_a_token_that_spans_the_border_counts_for_every_option(model: Any) -> None:
    """`ab` is one token: after the prompt `a` both options are compared as whole texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: n for n, token in enumerate(["<pad>", "</s>", "x", "a", "b", "c", "ab"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merging = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>")
    (row,) = option_scores(model, merging, ["xa"], [("b", "c")], progress=False)
    with torch.no_grad():
        first = torch.log_softmax(model(input_ids=torch.tensor([[2]])).logits[0, -1].double(), 0)
        second = torch.log_softmax(model(input_ids=torch.tensor([[2, 3]])).logits[0, -1].double(), 0)
    assert row[0].log_prob == pytest.approx(first[6].item(), abs=1e-10)
    assert row[1].log_prob == pytest.approx((first[3] + second[5]).item(), abs=1e-10)
    assert [score.tokens for score in row] == [1, 2]


def test_texts_begin_as_the_tokenizer_begins_them(model: Any, tokenizer: Any) -> None:
    from copy import deepcopy

    from tokenizers.processors import TemplateProcessing

    starting = deepcopy(tokenizer)
    starting.bos_token = "</s>"
    starting.backend_tokenizer.post_processor = TemplateProcessing(
        single="</s> $A </s>", special_tokens=[("</s>", starting.bos_token_id)]
    )
    (row,) = option_scores(model, starting, ["ab"], [("cd", "ef")], progress=False)
    ids = [starting.bos_token_id, *tokenizer("abcd")["input_ids"]]
    with torch.no_grad():
        log_probs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
    assert row[0].log_prob == pytest.approx((log_probs[2, ids[3]] + log_probs[3, ids[4]]).item(), abs=1e-10)
    cut = option_scores(model, starting, ["xxxxab"], [("cd", "ef")], max_length=5, progress=False)
    assert cut == [row]  # the beginning of the prompt is lost, not the first token


def test_long_prompts_lose_their_beginning(model: Any, tokenizer: Any) -> None:
    found = option_scores(model, tokenizer, ["ab" * 50], [(" yes", " no")], max_length=12, progress=False)[0]
    kept = ("ab" * 50)[-8:]  # 12 less the longest option, for both
    assert [score.log_prob for score in found] == pytest.approx(
        [slow(model, tokenizer, kept, option) for option in (" yes", " no")], abs=1e-10
    )
    with pytest.raises(DataError, match=r"Prompt 0.*fit in 4 tokens"):
        option_scores(model, tokenizer, ["abab"], [(" yes", " no")], max_length=4, progress=False)


def test_the_model_is_left_as_it_was(model: Any, tokenizer: Any) -> None:
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()], torch.get_rng_state()
    option_scores(model, tokenizer, PROMPTS, OPTIONS, progress=False)
    assert [module.training for module in model.modules()] == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_scored(model: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"Prompt 1.*token of their own"):
        option_scores(model, tokenizer, ["a", ""], [("b", "c"), ("b", "c")], progress=False)
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="option 0 of prompt 0"):
        option_scores(model, tokenizer, ["a"], [("b", "c")], progress=False)


class _Given(LikelihoodTask):
    name = "given"

    def __init__(self, *items: ChoiceItem) -> None:
        self._items = items

    def items(self) -> tuple[ChoiceItem, ...]:
        return self._items


def test_the_likeliest_is_chosen_and_equal_ones_by_their_order(model: Any, tokenizer: Any) -> None:
    items = [
        ChoiceItem(prompt=prompt, options=options, answer=0, source=f"s{n % 2}")
        for n, (prompt, options) in enumerate(zip(PROMPTS, OPTIONS, strict=True))
    ]
    items.append(ChoiceItem(prompt="a", options=("b", "b"), answer=1, source="s0", names=("one", "two")))
    result = evaluate(model, tokenizer, _Given(*items), progress=False)
    for item, answer in zip(items[:-1], result.answers, strict=False):
        values = [slow(model, tokenizer, item.prompt, option) for option in item.options]
        best = values.index(max(values))
        assert (answer.text, answer.correct) == (item.options[best].strip(), best == 0)
        assert answer.scores == pytest.approx(values, abs=1e-10)
    assert (result.answers[-1].text, result.answers[-1].expected, result.answers[-1].correct) == ("one", "two", False)
    assert result.to_dict()["answers"][0]["scores"] == list(result.answers[0].scores)


def test_normalised_choice_may_differ(model: Any, tokenizer: Any) -> None:
    task = _Given(ChoiceItem(prompt="q", options=(" a", " " + "long answer " * 5), answer=1, source="s"))
    plain = evaluate(model, tokenizer, task, progress=False).answers[0]
    task.normalise = "bytes"
    by_bytes = evaluate(model, tokenizer, task, progress=False)
    lengths = [1, len(("long answer " * 5).strip())]
    assert by_bytes.answers[0].scores == pytest.approx([s / n for s, n in zip(plain.scores, lengths, strict=True)])
    assert by_bytes.settings["normalise"] == "bytes"


def test_limit_takes_sources_in_turn_and_keeps_groups_whole(model: Any, tokenizer: Any) -> None:
    items = [
        ChoiceItem(prompt=f"p{n}", options=("a", "b"), answer=0, source=source, group=group)
        for n, (source, group) in enumerate([("x", 1), ("x", 1), ("x", 2), ("x", None), ("y", 1), ("y", 1)])
    ]
    found = evaluate(model, tokenizer, _Given(*items), limit=2, progress=False)
    assert [answer.prompt for answer in found.answers] == ["p0", "p1", "p4", "p5"]
    found = evaluate(model, tokenizer, _Given(*items), limit=3, progress=False)
    assert [answer.prompt for answer in found.answers] == ["p0", "p1", "p2", "p4", "p5"]
    assert found.settings["limit"] == 3


@pytest.mark.parametrize(
    "change, found",
    [
        ({"prompt": ""}, "prompt"),
        ({"options": ("a",)}, "two or more"),
        ({"options": ("a", " ")}, "with text"),
        ({"answer": 2}, "number 2"),
        ({"names": ("a",)}, "name"),
    ],
)
def test_bad_items(change: dict[str, Any], found: str) -> None:
    with pytest.raises(DataError, match=found):
        ChoiceItem(**{"prompt": "p", "options": ("a", "b"), "answer": 0, "source": "s", **change})


@pytest.mark.parametrize("option", ["batch_size", "max_new_tokens", "limit"])
def test_bad_options(model: Any, tokenizer: Any, option: str) -> None:
    task = _Given(ChoiceItem(prompt="p", options=("a", "b"), answer=0, source="s"))
    with pytest.raises(ConfigError, match=option):
        evaluate(model, tokenizer, task, **{option: 0})
