"""Models whose layers differ from each other: heads, windows, experts, recurrences, shared keys and values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import transformers
from peft import LoraConfig, get_peft_model
from transformers import set_seed

from corebatch.errors import UnsupportedModelError
from corebatch.trainer import CoresetConfig
from training import VOCABULARY, mixture, run, same, trainer, weights

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
]
SIZES: dict[str, Any] = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
TURNS = ["sliding_attention", "full_attention"] * 2
GEMMA = {"head_dim": 8, "layer_types": TURNS, "sliding_window": 8}
BY_LAYER = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 6}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma 3: windows in turns": ("Gemma3Text", {**GEMMA, "tie_word_embeddings": True}),
    "gemma 3n: shared keys and values": (
        "Gemma3nText",
        {**GEMMA, **BY_LAYER, "num_kv_shared_layers": 2, "laurel_rank": 4, "altup_num_inputs": 2},
    ),
    "gemma 4: heads of two sizes": (
        "Gemma4Text",
        {**GEMMA, **BY_LAYER, "global_head_dim": 16, "num_kv_shared_layers": 0},
    ),
    "gemma 4: shared keys and values": (
        "Gemma4Text",
        {**GEMMA, **BY_LAYER, "global_head_dim": 16, "num_kv_shared_layers": 2},
    ),
    "deepseek: latent attention, a dense layer first": (
        "DeepseekV3",
        {
            **{**LATENT, **EXPERTS, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
            **{"first_k_dense_replace": 1, "n_shared_experts": 1},
        },
    ),
    "qwen 3 next: linear attention": (
        "Qwen3Next",
        {
            **{**DELTA, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16, "head_dim": 8},
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
    "jamba: state spaces": (
        "Jamba",
        {
            **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
            **{"num_experts": 4, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False},
        },
    ),
    "lfm 2: convolutions": ("Lfm2", {"layer_types": ["conv", "full_attention"] * 2}),
    "gpt-oss: sinks and experts": ("GptOss", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "smollm 3: layers without positions": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "glm 4 moe": (
        "Glm4Moe",
        {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "head_dim": 8},
    ),
}
NO_VALUES = ("deepseek",)
"""Whose attention has no projection to values that is known: they train without scoring, and scoring names it."""


def made(name: str, lora: bool) -> Any:
    kind, settings = MODELS[name]
    classes = [getattr(transformers, kind + end, None) for end in ("Config", "ForCausalLM")]
    classes[1] = classes[1] or getattr(transformers, kind.removesuffix("Text") + "ForCausalLM", None)
    if None in classes:
        pytest.skip(f"this transformers has no {kind}")
    set_seed(0)
    model = classes[1](classes[0](**{**SIZES, **settings}))
    if lora:
        model = get_peft_model(
            model, LoraConfig(r=2, target_modules=["v_proj", "kv_b_proj"]), autocast_adapter_dtype=False
        )
    return model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_it_trains(tmp_path, name, lora, caplog):
    scoring = "none" if name.startswith(NO_VALUES) else "full"
    settings = {"max_steps": 2, "gradient_checkpointing": not lora, "train_dataset": mixture(48)}
    trained = run(trainer(tmp_path, made(name, lora), CoresetConfig(scoring=scoring), **settings))
    losses = [line["loss"] for line in trained.state.log_history if "loss" in line]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    counted = "mfu" in trained.state.log_history[0]
    assert counted or "no model FLOPs utilisation (mfu) of this model: it has layers" in caplog.text


def test_attention_without_a_known_projection_is_named_with_what_works_instead(tmp_path):
    name = next(name for name in MODELS if name.startswith(NO_VALUES))
    with pytest.raises(UnsupportedModelError, match=r"executed .*kv_b_proj.*Use coreset.scoring none, or a scorer"):
        run(trainer(tmp_path / "a", made(name, False), CoresetConfig(scoring="full"), max_steps=2))
    other = CoresetConfig(scorer="representation")
    assert run(trainer(tmp_path / "b", made(name, False), other, max_steps=2)).state.global_step == 2


@pytest.mark.parametrize("name", ["gemma 4: heads of two sizes", "qwen 3 next: linear attention"])
def test_pool_factor_one_is_plain_training(tmp_path, name):
    ends = []
    for plain in (True, False):
        coreset = CoresetConfig(pool_factor=1)
        ends.append(weights(run(trainer(tmp_path / str(plain), made(name, False), coreset, plain=plain, max_steps=2))))
    assert same(*ends)
