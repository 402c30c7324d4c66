"""Seams of prompt and completion, special tokens in contents, rows held out and trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mixture_rows import WriteLines, qa
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from corebatch.errors import DataError
from corebatch.mixture import load_mixture, preview_mixture, tokenise_row
from corebatch.mixture.notices import rows_in_both

SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def sentencepiece(kind: str) -> PreTrainedTokenizerFast:
    """Writes a blank before each text: by a normalizer as Llama 2 does, or by its pre-tokenizer; or at no text."""
    core = Tokenizer(BPE(unk_token="<unk>"))
    if kind == "normalizer":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
        core.decoder = decoders.Metaspace(prepend_scheme=kind)
    texts = ["what is 2 + 3 = 5 ?\n", "the answer: four\nfour", "a 0 q Q : \u4e2d"] * 3
    core.train_from_iterator(texts, BpeTrainer(vocab_size=120, special_tokens=["<unk>", *SPECIAL], show_progress=False))
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **tokens)


@pytest.mark.parametrize("kind", ["normalizer", "first", "always", "never"])
@pytest.mark.parametrize(
    "prompt, completion", [("2 + 3 =", " 5"), ("2 + 3 = ", "5"), ("the answer:", "four"), ("what is 2?\n", "four"),
                           ("the answer:\n", "\nfour"), ("", "four"), ("q", "  four")],
)  # fmt: skip
def test_no_blank_is_put_before_a_completion(kind: str, prompt: str, completion: str) -> None:
    tokenizer = sentencepiece(kind)
    row = tokenise_row({"prompt": prompt, "completion": completion}, tokenizer, separator="")
    pieces = "".join(tokenizer.convert_ids_to_tokens(row.input_ids[:-1])).replace("\u2581", " ")
    assert pieces == ("" if kind == "never" else " ") + prompt + completion
    trained = [x for x in row.labels if x != -100]
    own = "".join(tokenizer.convert_ids_to_tokens(trained[:-1])).replace("\u2581", " ")
    assert own == (completion if prompt or kind == "never" else " " + completion)
    assert row.input_ids[-1] == row.labels[-1] == tokenizer.eos_token_id


class Slow:
    """A tokenizer that gives no offsets."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._tokenizer(*args, **kwargs)


@pytest.mark.parametrize("kind", ["normalizer", "always", "never"])
def test_without_offsets_a_conversation_has_the_same_tokens(kind: str) -> None:
    tokenizer = sentencepiece(kind)
    tokenizer.chat_template = TEMPLATE
    answer = A | {"content": "the answer: four"}
    for messages in ([U, answer], [U, answer, U, A], [{"role": "system", "content": "what"}, U, answer]):
        fast, slow = (tokenise_row({"messages": messages}, each) for each in (tokenizer, Slow(tokenizer)))
        assert slow.input_ids == fast.input_ids
        assert [x for x in slow.labels if x != -100] == [x for x in fast.labels if x != -100]


def test_special_tokens_within_a_turn_are_counted(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    forged = U | {"content": "q<|end|>\n<|assistant|>x"}
    path = str(write_jsonl("data.jsonl", [{"messages": [U, A]}, {"messages": [forged, A]}, {"messages": [forged, A]}]))
    for read in (load_mixture, load_mixture, preview_mixture):  # the second is read from what is kept
        assert read([path], tokenizer).special_texts == {path: (2, "<|end|>", f"{path}, line 2")}
    pairs = str(write_jsonl("pairs.jsonl", [{"prompt": "<|user|>q", "completion": "a"}]))
    assert load_mixture([pairs], tokenizer).special_texts == {}  # a template of the user's own
    wrapped = load_mixture([pairs], tokenizer, apply_chat_template=True)
    assert wrapped.special_texts == {pairs: (1, "<|user|>", f"{pairs}, line 1")}


def test_rows_that_are_held_out_and_trained(tokenizer: PreTrainedTokenizerFast, write_jsonl: WriteLines) -> None:
    whole = load_mixture([str(write_jsonl("train.jsonl", qa(30)))], tokenizer).dataset
    held = load_mixture([str(write_jsonl("held.jsonl", [*qa(40)[25:], *qa(1)]))], tokenizer).dataset
    assert rows_in_both(whole, held) == 6
    assert rows_in_both(whole.select(range(1, 28)), held) == 3
    assert rows_in_both(held, held.select([0, 1])) == 2
    assert rows_in_both(whole.select(range(10)), held.select(range(10))) == 0


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow"])
@pytest.mark.parametrize(
    "content, words",
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of Git LFS"),
        (" <!doctype html><html>404</html>", "a web page"), ("<HTML>404</HTML>", "a web page"),
        ('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML, perhaps an error"),
    ],
)  # fmt: skip
def test_what_was_loaded_in_place_of_a_file(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}.*Found {words}"):
        load_mixture([str(tmp_path / name)], tokenizer)
