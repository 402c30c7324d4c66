"""A tiny Llama and a character tokenizer, both made here."""

import string
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHARACTERS = string.ascii_letters + string.digits + ".,:?+-*/=ĠĊ"  # Ġ and Ċ: space and newline, byte-level


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    vocabulary = {token: n for n, token in enumerate(["<pad>", "</s>", "<unk>", *CHARACTERS])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


@pytest.fixture
def model(tokenizer: Any) -> Any:
    """Float64, so that batched and single rows agree to the token; wide weights, so that outputs vary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).double()
