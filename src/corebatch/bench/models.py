"""Models for timing: presets by name, or a folder; random weights cost the same time and memory as trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from corebatch.errors import ConfigError, UnsupportedModelError
from corebatch.options import hint

ADAPTERS = ("lora", "full")
PRECISIONS = ("float32", "bfloat16")
LORA_RANK = 16


def _llama(vocabulary: int, hidden: int, inner: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        **more,
    }


PRESETS: dict[str, dict[str, Any]] = {
    # 10.1 M and 30.3 M parameters: an optimizer step takes seconds on two CPU cores
    "llama-10m": _llama(4096, 320, 720, 8, 5),
    "llama-30m": _llama(4096, 512, 1152, 10, 8),
    # 1.24 B, the shape of meta-llama/Llama-3.2-1B
    "llama-3.2-1b": _llama(128256, 2048, 8192, 16, 32, num_key_value_heads=8, max_position_embeddings=8192),
    # 2.78 B, the shape of microsoft/phi-2, the model of most of CoLM's experiments
    "phi-2": {
        "model_type": "phi",
        "vocab_size": 51200,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "partial_rotary_factor": 0.4,
        "max_position_embeddings": 2048,
    },
}
"""Configurations by name; every key but `model_type` is the configuration class's own."""

ATTENTION = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "dense", "qkv_proj", "query_key_value", "c_attn", "Wqkv"),
)
"""Names of the projections of attention in transformers' decoders: what LoRA adapts here, where a model has them."""


def model_config(model: str) -> Any:
    """The configuration of a preset, of a folder with config.json, or of a JSON file. Raises ConfigError: none of
    these."""
    if model in PRESETS:
        settings = dict(PRESETS[model])
        return AutoConfig.for_model(settings.pop("model_type"), **settings)
    path = Path(model)
    if not (path.is_file() or (path / "config.json").is_file()):
        raise ConfigError(
            f"The model should be one of {', '.join(PRESETS)}, a folder with config.json, or a JSON file. "
            f"Found {model!r}.{hint(model, PRESETS)}"
        )
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} should hold a model's configuration. transformers refuses it: {error}") from error


def build_model(
    model: str,
    *,
    adapter: str = "lora",
    precision: str = "float32",
    random_weights: bool = True,
    seed: int = 0,
    device: str = "cpu",
) -> Any:
    """A causal language model to train.

    Args:
        model: as for `model_config`; with `random_weights=False` its weights are read if it is a folder that has some.
        adapter: "lora" (rank 16 on the attention's projections) or "full".
        precision: "float32", or "bfloat16" for training under autocast to it. What is trained stays float32 then, as
            AdamW needs it; weights that LoRA freezes are bfloat16.

    Raises:
        ConfigError: an unknown name, or a configuration of no causal language model.
        UnsupportedModelError: LoRA finds no projection of attention.
    """
    for name, value, known in (("adapter", adapter, ADAPTERS), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ConfigError(f"{name} should be {' or '.join(known)}. Found {value!r}.")
    config = model_config(model)
    config.use_cache = False  # training keeps none, and checkpointing warns of it
    dtype = torch.bfloat16 if precision == "bfloat16" and adapter == "lora" else torch.float32
    set_seed(seed)
    try:
        if not random_weights and has_weights(model):
            made = AutoModelForCausalLM.from_pretrained(model, config=config, dtype=dtype, local_files_only=True)
        else:
            with torch.device(device):  # billions of random numbers are drawn faster on the GPU
                made = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{model} should be a causal language model. transformers refuses it: {error}") from error
    made = made.to(device)
    return with_lora(made) if adapter == "lora" else made


def has_weights(model: str) -> bool:
    """Whether it names a folder with weights in it."""
    folder = Path(model)
    return folder.is_dir() and any(folder.glob("*.safetensors")) | any(folder.glob("pytorch_model*.bin"))


def with_lora(model: nn.Module) -> Any:
    """The model with LoRA of rank 16 on its attention's projections. Raises UnsupportedModelError: it has none by a
    known name."""
    parts = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = [name for name in ATTENTION if name in parts]
    if not targets:
        raise UnsupportedModelError(
            f"LoRA should find a projection of attention, one of {', '.join(ATTENTION)}. "
            f"Found none in {type(model).__name__}: use the adapter 'full'."
        )
    return get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=targets)
    )
