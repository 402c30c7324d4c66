"""Tiny models of many architectures, made from configurations, and a padded batch for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from corebatch.batch.micro_batches import micro_batches
from corebatch.batch.pieces import by_length, deal, split
from corebatch.model.rows import Padding
from corebatch.types import ID

HIDDEN, HEADS, LAYERS, VOCABULARY, LENGTH = 32, 4, 3, 64, 64
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
COMMON = {
    **TOKENS,
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": LENGTH,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
OLD_NAMES = {**TOKENS, "vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS}


@dataclass(frozen=True)
class Architecture:
    """One model family.

    Attributes:
        name: of its classes in transformers, without "Config" and "ForCausalLM".
        value: the last part of the name of the module that computes values.
        output: the name of the attention's output projection, whose input is the attention's context.
        settings: of the configuration.
        dropout: configuration keys of dropout probabilities.
        config, model: the classes, where they are not `name` + "Config" and `name` + "ForCausalLM".
    """

    name: str
    value: str
    output: str
    settings: dict[str, Any]
    dropout: tuple[str, ...] = ("attention_dropout",)
    config: str = ""
    model: str = ""


PHI_DROPOUT = ("attention_dropout", "embd_pdrop", "resid_pdrop")
GPT_DROPOUT = ("attn_pdrop", "embd_pdrop", "resid_pdrop")
FALCON = {**COMMON, "multi_query": False, "new_decoder_architecture": False, "alibi": False}
GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
BIGCODE = {**OLD_NAMES, "n_positions": LENGTH}
BLOOM = {**TOKENS, "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS}
MPT = {
    **TOKENS,
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "n_heads": HEADS,
    "n_layers": LAYERS,
    "max_seq_len": LENGTH,
}


def _v(name: str, settings: dict[str, Any], output: str = "o_proj", **more: Any) -> Architecture:
    return Architecture(name, "v_proj", output, settings, **more)


def _fused(
    name: str, settings: dict[str, Any], value: str = "query_key_value", output: str = "dense", **more: Any
) -> Architecture:
    return Architecture(name, value, output, settings, **more)


ARCHITECTURES: dict[str, Architecture] = {
    "llama": _v("Llama", GROUPED),
    "qwen2": _v("Qwen2", GROUPED),
    "qwen3": _v("Qwen3", {**GROUPED, "head_dim": 8}),
    "mistral": _v("Mistral", {**GROUPED, "sliding_window": 8}),
    "gemma": _v("Gemma", {**GROUPED, "head_dim": 16}),
    "gemma2": _v("Gemma2", {**GEMMA, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0}),
    "gemma3": _v("Gemma3", {**GEMMA, "final_logit_softcapping": 3.0}, config="Gemma3TextConfig"),
    "phi": _v("Phi", COMMON, "dense", dropout=PHI_DROPOUT),
    "opt": _v("OPT", {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": HIDDEN}, "out_proj", dropout=("dropout",)),
    "gptj": _v("GPTJ", {**OLD_NAMES, "n_positions": LENGTH, "rotary_dim": 4}, "out_proj", dropout=GPT_DROPOUT),
    "stablelm": _v("StableLm", GROUPED),
    "granite": _v("Granite", {**GROUPED, "logits_scaling": 3.0}),
    "cohere": _v("Cohere", {**GROUPED, "logit_scale": 0.25}),
    "olmo2": _v("Olmo2", GROUPED),
    "mixtral": _v(
        "Mixtral",
        {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": "eager"},
    ),
    "phi3": _fused("Phi3", GROUPED, "qkv_proj", "o_proj"),
    "gpt2": _fused("GPT2", BIGCODE, "c_attn", "c_proj", dropout=GPT_DROPOUT, model="GPT2LMHeadModel"),
    "gptneox": _fused("GPTNeoX", COMMON),
    "falcon": _fused("Falcon", FALCON),
    "falcon_multi_query": _fused("Falcon", {**FALCON, "multi_query": True}),
    "falcon_new": _fused("Falcon", {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "falcon_alibi": _fused("Falcon", {**FALCON, "alibi": True}),
    "bloom": _fused("Bloom", BLOOM, dropout=("hidden_dropout", "attention_dropout")),
    "gptbigcode": _fused("GPTBigCode", {**BIGCODE, "multi_query": True}, "c_attn", "c_proj", dropout=GPT_DROPOUT),
    "gptbigcode_heads": _fused(
        "GPTBigCode", {**BIGCODE, "multi_query": False}, "c_attn", "c_proj", dropout=GPT_DROPOUT
    ),
    "mpt": _fused("Mpt", MPT, "Wqkv", "out_proj", dropout=("resid_pdrop", "emb_pdrop")),
}
FUSED = [kind for kind, architecture in ARCHITECTURES.items() if architecture.value != "v_proj"]


def tiny_model(
    kind: str = "llama",
    *,
    lora: bool = False,
    dtype: torch.dtype = torch.float64,
    dropout: float = 0.0,
    seed: int = 0,
    **settings: Any,
) -> Any:
    """A causal language model with random weights; with `lora`, adapted with a B that is not zero.

    The global random state is left as it was.
    """
    architecture = ARCHITECTURES[kind]
    config = getattr(transformers, architecture.config or architecture.name + "Config")(
        **{**architecture.settings, **dict.fromkeys(architecture.dropout, dropout), **settings}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, architecture.model or architecture.name + "ForCausalLM")(config)
        for name, parameter in model.named_parameters():
            # Larger than the initial 0.02, and biases and gains that are not 0 and 1: everything matters.
            parameter.data = (
                parameter.data + 0.1 * torch.randn_like(parameter)
                if parameter.ndim < 2 or "norm" in name
                else 0.2 * torch.randn_like(parameter)
            )
        model = model.to(dtype)
        if lora:
            model = adapted(model, kind, dropout=dropout)
    return model.eval()


def adapted(model: Any, kind: str, *, dropout: float = 0.0, rank: int = 3, **settings: Any) -> Any:
    """The model with LoRA on its value projections, B not zero, in the model's dtype."""
    architecture = ARCHITECTURES[kind]
    config = LoraConfig(
        **{
            "r": rank,
            "lora_alpha": 2 * rank,
            "lora_dropout": dropout,
            "target_modules": [architecture.value],
            "init_lora_weights": False,
            "fan_in_fan_out": kind == "gpt2",
            **settings,
        }
    )
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def tiny_batch(
    rows: int = 5, width: int = 12, *, left: bool = False, pad: int = 0, seed: int = 1, vocabulary: int = VOCABULARY
) -> dict[str, Tensor]:
    """Rows of unlike length with masked prompts, padded to `width + pad`; row 3 has no trained token.

    `position_ids` count from a row's first token, so that the side of the padding makes no difference to models with
    absolute positions.
    """
    generator = torch.Generator().manual_seed(seed)
    total = width + pad
    batch = {
        "input_ids": torch.zeros(rows, total, dtype=torch.long),
        "labels": torch.full((rows, total), -100),
        "attention_mask": torch.zeros(rows, total, dtype=torch.long),
        "position_ids": torch.zeros(rows, total, dtype=torch.long),
    }
    for row in range(rows):
        length = width - 2 * (row % 4)
        prompt = length if row == 3 else 2 + row % 3
        tokens = torch.randint(3, vocabulary, (length,), generator=generator)
        part = slice(total - length, total) if left else slice(0, length)
        labels = tokens.clone()
        labels[:prompt] = -100
        if row == 1:
            labels[-2] = -100  # a gap among the labels
        for key, values in (
            ("input_ids", tokens),
            ("labels", labels),
            ("attention_mask", torch.ones(length, dtype=torch.long)),
            ("position_ids", torch.arange(length)),
        ):
            batch[key][row, part] = values
    return batch


def batch_for(kind: str, **settings: Any) -> dict[str, Tensor]:
    """`tiny_batch` with the keys that the architecture takes: those with alibi or positions of their own take none."""
    batch = tiny_batch(**settings)
    if kind in ("bloom", "mpt", "falcon_alibi", "opt"):
        del batch["position_ids"]
    return batch


def take(batch: dict[str, Tensor], rows: Any) -> dict[str, Tensor]:
    """Some rows of a batch."""
    return {key: value[rows] for key, value in batch.items()}


def in_micro_batches(
    rows: Sequence[Mapping[str, Tensor]],
    weights: Tensor | None,
    count: int,
    padding: Padding,
    filler: Mapping[str, Tensor],
    **settings: Any,
) -> list[dict[str, Any]]:
    """Rows in `count` micro-batches of near-equal numbers of rows, or packed of near-equal tokens."""
    lengths = [len(row["input_ids"]) for row in rows]
    order = by_length(range(len(rows)), lengths, [int(row[ID]) for row in rows])
    packed, most = settings.get("packed"), -(-len(rows) // count)
    pieces = deal(order, lengths, count, most) if packed else split(order, count)
    return micro_batches(dict(enumerate(rows)), weights, pieces, padding, filler, **settings)


def value_modules(model: nn.Module, kind: str) -> list[nn.Module]:
    """The value projections in the order of the blocks."""
    last = ARCHITECTURES[kind].value
    return [
        module
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] == last and hasattr(module, "weight")
    ]


def value_weights(model: nn.Module, kind: str) -> list[nn.Parameter]:
    """The weight that the features of each block are derivatives by: LoRA's B, or the projection's own."""
    return [
        module.lora_B["default"].weight if hasattr(module, "lora_B") else module.weight  # type: ignore[index,union-attr]
        for module in value_modules(model, kind)
    ]
