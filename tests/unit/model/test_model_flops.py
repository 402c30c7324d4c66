"""Models whose layers differ: the count is the dispatcher's, or there is none and a reason."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from corebatch.model.flops import ModelFlops, windowed_context
from corebatch.model.model_flops import flops_or_reason, largest
from corebatch.model.projections import value_columns

VOCABULARY = 160
SIZES: dict[str, Any] = {
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": VOCABULARY, "hidden_size": 32},
    **{"intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
}
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
ROUTED = {"moe_intermediate_size": 32, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}
KINDS = ["sliding_attention", "full_attention"]
COUNTED: dict[str, tuple[str, dict[str, Any]]] = {
    "heads of two sizes": (
        "Gemma4Text",
        {
            **{"head_dim": 8, "global_head_dim": 16, "layer_types": KINDS, "sliding_window": 64},
            **{"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": VOCABULARY},
        },
    ),
    "latent attention, a dense layer before experts": (
        "DeepseekV3",
        {**LATENT, **ROUTED, "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2},
    ),
    "stacked experts under another name": ("GraniteMoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "a name that looks like another": ("GptOss", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "tied": ("Qwen2", {"tie_word_embeddings": True}),
    "windows in turns": ("Gemma3Text", {"head_dim": 8, "layer_types": KINDS, "sliding_window": 64}),
}
UNCOUNTED: dict[str, tuple[str, dict[str, Any], str]] = {
    "linear attention": (
        "Qwen3Next",
        {
            **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "num_experts": 4},
            **{"linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "head_dim": 8},
            **{"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "num_experts_per_tok": 2},
        },
        "DeltaNet",
    ),
    "state space": (
        "Jamba",
        {
            **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
            **{"num_experts": 4, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
        },
        "Mamba",
    ),
    "convolutions": ("Lfm2", {"layer_types": ["conv", "full_attention"]}, "ShortConv"),
}


def made(name: str, settings: dict[str, Any]) -> Any:
    kinds = [getattr(transformers, name + end, None) for end in ("Config", "ForCausalLM")]
    kinds[1] = kinds[1] or getattr(transformers, name.removesuffix("Text") + "ForCausalLM", None)
    if None in kinds:
        pytest.skip(f"this transformers has no {name}")
    config = kinds[0](**{**SIZES, **settings})
    config._attn_implementation = config._experts_implementation = "eager"
    return kinds[1](config).eval()


def batch(length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, VOCABULARY, (1, length))
    return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def counted(model: Any, length: int) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=batch(length)["input_ids"], use_cache=False)
    return counter.get_total_flops() / length


@pytest.mark.parametrize("case", COUNTED)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_layers_are_counted_one_by_one(case: str, lora: bool) -> None:
    model = made(*COUNTED[case])
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["o_proj"])).eval()
    found, reason = flops_or_reason(model, batch(8))
    assert found is not None, reason
    for length in (16, 48):  # shorter than the windows, where eager attention computes all pairs
        assert found.forward(length) == pytest.approx(counted(model, length), rel=0.03)


@pytest.mark.parametrize("case", UNCOUNTED)
def test_what_is_not_attention_gives_no_count_and_a_reason(case: str) -> None:
    name, settings, word = UNCOUNTED[case]
    found, reason = flops_or_reason(made(name, settings), batch(8))
    assert found is None
    assert word in reason


def test_a_window_bounds_what_is_attended_to() -> None:
    by_hand = [sum(min(place + 1, 4) for place in range(length)) / length for length in (3, 4, 9)]
    assert [windowed_context((length + 1) / 2, 4) for length in (3, 4, 9)] == pytest.approx(by_hand)
    model = ModelFlops(weights=0, trained_weights=0, attention=10, windows={4: 20.0})
    assert model.forward(5) == pytest.approx(10 * 5 + 20 * by_hand[2])
    found, reason = flops_or_reason(made("Gemma3Text", {**COUNTED["windows in turns"][1], "sliding_window": 8}))
    assert found is not None, reason
    assert found.windows == {8: 4 * 32.0}
    assert found.attention == 4 * 32.0


class Loop(nn.Module):
    """A block that runs three times, one that never runs, and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.block, self.unused = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 20)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        hidden = self.table(input_ids)
        for _ in range(3):
            hidden = self.block(hidden)
        return self.head(hidden)


def test_weights_count_as_often_as_they_run() -> None:
    found, reason = flops_or_reason(Loop(), batch(8) | {"input_ids": torch.randint(0, 20, (1, 8))})
    assert found is not None, reason
    assert found.weights == 3 * 64 + 160
    once = flops_or_reason(Loop())[0]
    assert once is not None
    assert once.weights == 2 * 64 + 160


def test_weights_that_a_kernel_reads_count_as_what_holds_them() -> None:
    class Fused(Loop):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Module()
            self.block.gate, self.block.up = nn.Linear(8, 8), nn.Linear(8, 8)  # type: ignore[assignment]
            self.block.forward = lambda x: x @ self.block.gate.weight @ self.block.up.weight  # type: ignore

    found, reason = flops_or_reason(Fused(), batch(8) | {"input_ids": torch.randint(0, 20, (1, 8))})
    assert found is not None, reason
    assert found.weights == 3 * 2 * 64 + 160


def test_a_forward_or_a_configuration_that_fails_is_a_reason() -> None:
    class Fails(Loop):
        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            raise KeyError("no such layer")

    assert flops_or_reason(Fails(), batch(8)) == (None, "KeyError: 'no such layer'")


def test_sizes_by_layer() -> None:
    assert largest(SimpleNamespace(inner=[3, 7, 5]), "inner") == 7
    assert largest(SimpleNamespace(inner=4), "inner") == 4
    assert largest(SimpleNamespace(), "inner") is None
    by_layer = SimpleNamespace(per_layer_config=[SimpleNamespace(inner=2), SimpleNamespace(inner=6)])
    assert largest(by_layer, "inner") == 6


def test_a_fused_projection_has_the_heads_of_its_own_layer() -> None:
    """OpenELM's configuration lists heads by layer, and its layers know their own."""
    config = SimpleNamespace(model_type="openelm", num_query_heads=[4, 6], num_kv_heads=[1, 2], head_dim=8)
    layer = SimpleNamespace(num_q_heads=6, num_v_heads=2, head_dim=8)
    columns = value_columns("qkv_proj", (6 + 2 * 2) * 8, config, layer)
    assert columns is not None
    assert columns.tolist() == list(range(64, 80))
