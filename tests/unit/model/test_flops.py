"""FLOPs against PyTorch's own counter, and the peaks of devices."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from corebatch.model import flops
from corebatch.model.flops import ModelFlops, causal_context, listed_peak, measured_peak, peak_flops
from corebatch.model.model_flops import model_flops

ROWS, LENGTH, VOCABULARY = 3, 24, 160
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def llama(**settings: Any) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
    common = {**TOKENS, **sizes, "vocab_size": VOCABULARY, "num_key_value_heads": 2, "attn_implementation": "eager"}
    return LlamaForCausalLM(LlamaConfig(**{**common, **settings}))


def gpt2() -> Any:
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY}
    return GPT2LMHeadModel(GPT2Config(**TOKENS, **sizes, attn_implementation="eager"))


def mixtral() -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2, "experts_implementation": "eager"}
    return MixtralForCausalLM(
        MixtralConfig(
            **TOKENS, **sizes, **experts, vocab_size=VOCABULARY, num_key_value_heads=2, attn_implementation="eager"
        )
    )


MODELS = {
    "llama": llama,
    "llama_tied": lambda: llama(tie_word_embeddings=True),
    "llama_head_size": lambda: llama(head_dim=16),
    "gpt2": gpt2,
    "mixtral": mixtral,
}


def counted(model: Any, *, train: bool) -> float:
    """FLOPs of a token by the dispatcher. Eager attention computes all pairs, so its context is the whole row."""
    ids = torch.randint(3, VOCABULARY, (ROWS, LENGTH))
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, labels=ids).loss
        if train:
            loss.backward()
    return counter.get_total_flops() / (ROWS * LENGTH)


@pytest.mark.parametrize("name", MODELS)
def test_forward_and_training_are_what_the_counter_counts(name: str) -> None:
    model = MODELS[name]()
    found = model_flops(model)
    assert found is not None
    assert found.forward(LENGTH) == pytest.approx(counted(model, train=False), rel=0.03)
    assert found.train(LENGTH) == pytest.approx(counted(model, train=True), rel=0.03)
    assert found.train(LENGTH) == pytest.approx(3 * found.forward(LENGTH))


def test_adapters_cost_nearly_two_forwards() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    model = get_peft_model(llama(num_hidden_layers=8), config, autocast_adapter_dtype=False)
    found = model_flops(model)
    assert found is not None
    assert found.forward(LENGTH) == pytest.approx(counted(model, train=False), rel=0.03)
    # Nothing goes back below the first adapters: the formula counts an eighth of a layer too much.
    assert found.train(LENGTH) == pytest.approx(counted(model, train=True), rel=0.05)
    assert found.train(0) / found.forward(0) == pytest.approx(2, abs=0.15)


def test_a_trained_copy_counts_once() -> None:
    config = LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(llama(), config, autocast_adapter_dtype=False)
    found = model_flops(model)
    assert found is not None
    assert found.forward(LENGTH) == pytest.approx(counted(model, train=False), rel=0.03)
    assert found.trained_weights >= VOCABULARY * 32


def test_packed_and_flat_weights() -> None:
    plain, packed = nn.Linear(32, 64, bias=False), nn.Linear(32, 64, bias=False)
    packed.weight = nn.Parameter(torch.zeros(1024, 1, dtype=torch.uint8), requires_grad=False)
    packed.weight.quant_state = SimpleNamespace(shape=torch.Size((64, 32)))  # type: ignore[attr-defined]
    found, same = model_flops(packed), model_flops(plain)
    assert found is not None
    assert same is not None
    assert found.weights == same.weights == 2048
    flat = nn.Module()
    flat.flat = nn.Parameter(torch.zeros(2048))
    assert model_flops(flat) is None


def test_a_step_counts_scoring_as_one_forward() -> None:
    model = ModelFlops(weights=1000, trained_weights=1000, attention=10)
    assert causal_context(12, 4) == 2.0  # rows of three tokens attend to 1, 2 and 3
    assert causal_context(0, 0) == 0.0
    assert model.step(scored=12, scored_rows=4, trained=6, trained_rows=2) == 12 * 2020 + 6 * 3 * 2020
    assert model.step(scored=0, scored_rows=4, trained=6, trained_rows=2) == 6 * 3 * 2020


@pytest.mark.parametrize(
    "name, kind, tera",
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100-PCIE-40GB", "tf32", 156),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "float16", 756),
        ("NVIDIA H200", "bfloat16", 989.4),
        ("NVIDIA B200", "bfloat16", 2250),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "float32", 91.6),
        ("NVIDIA A10", "bfloat16", 125),
        ("NVIDIA A10G", "bfloat16", 70),
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("Tesla V100-SXM2-16GB", "tf32", 15.7),
        ("Tesla T4", "float16", 65),
        ("NVIDIA GeForce RTX 3090", "bfloat16", 71),
        ("NVIDIA GeForce RTX 4090", "float16", 165.2),
    ],
)
def test_peaks_by_name(name: str, kind: str, tera: float) -> None:
    assert listed_peak(name, kind) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16"),
        ("NVIDIA GeForce RTX 3090 Ti", "bfloat16"),
        ("NVIDIA L40", "bfloat16"),
        ("Tesla T4", "bfloat16"),
        ("NVIDIA A100-SXM4-80GB", "float64"),
        ("AMD Instinct MI300X", "bfloat16"),
    ],
)
def test_unknown_peaks(name: str, kind: str) -> None:
    assert listed_peak(name, kind) is None


def test_a_listed_gpu_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(flops, "measured_peak", lambda device, dtype: 1e9)
    gpu = torch.device("cuda", 0)
    assert (peak_flops(gpu, torch.bfloat16).value, peak_flops(gpu, torch.bfloat16).how) == (989.4e12, "table")
    assert peak_flops(gpu, torch.float64).how == "measured matmul float64"


def test_a_cpu_is_measured_once_and_quickly() -> None:
    state, began = torch.get_rng_state(), time.perf_counter()
    measured_peak.cache_clear()
    peak = peak_flops(torch.device("cpu"), torch.float32)
    took = time.perf_counter() - began
    assert peak.how == "measured matmul float32"
    assert 1e8 < peak.value < 1e14
    assert took < 2  # 0.1 s on an idle machine
    assert peak_flops(torch.device("cpu"), torch.float32) == peak
    assert torch.equal(torch.get_rng_state(), state)
