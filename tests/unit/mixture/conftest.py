"""Tiny tokenizers, made here and exact (byte level, so that decoding gives back every character)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import huggingface_hub.constants
import pytest
from mixture_rows import WriteLines
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which this test's tokenised rows are kept."""
    folder = tmp_path_factory.mktemp("kept")
    monkeypatch.setenv("COREBATCH_CACHE", str(folder))
    return folder


def byte_tokenizer(*, bos: bool = False, trim_offsets: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["what is the answer to the question", "the answer is four"] * 3, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    elif trim_offsets:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def wrap(tokenizer: Tokenizer, **changes: Any) -> PreTrainedTokenizerFast:
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} | changes
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=SPECIAL[3:],
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in tokens.items() if token is not None},
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """make_tokenizer(bos=True, eos_token="<pad>"): one of its own."""
    return lambda bos=False, **changes: wrap(byte_tokenizer(bos=bos), **changes)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """With a chat template; begins texts with nothing."""
    return wrap(byte_tokenizer())


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Begins every text with <s>."""
    return wrap(byte_tokenizer(bos=True))


@pytest.fixture(scope="session")
def trimming_tokenizer() -> PreTrainedTokenizerFast:
    """Offsets leave out blanks, as GPT-2's do."""
    return wrap(byte_tokenizer(trim_offsets=True))


@pytest.fixture(scope="session")
def bare_tokenizer() -> PreTrainedTokenizerFast:
    """No template, no pad, no beginning and no end of sequence."""
    wrapped = wrap(byte_tokenizer(), pad_token=None, bos_token=None, eos_token=None)
    wrapped.chat_template = None
    return wrapped


@pytest.fixture
def write_jsonl(tmp_path: Path) -> WriteLines:
    """write_jsonl("a/b.jsonl", rows) -> path"""

    def write(name: str, rows: Iterable[Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
