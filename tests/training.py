"""Tiny models, a tiny mixture and trainers for tests: no hub, seconds on one core."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from corebatch.optimizers import training_arguments
from corebatch.trainer import CoresetConfig, CoresetTrainer

VOCABULARY = 48
SOURCES = ("algebra", "geometry", "logic", "rare")
VALUES = {"llama": "v_proj", "phi": "v_proj", "gpt2": "c_attn"}
STRATEGY = next((field for field in fields(TrainingArguments) if field.name == "train_sampling_strategy"), None)
"""The Trainer's choice of a sampler; transformers 4 has `group_by_length` alone."""
BY_LENGTH: dict[str, Any] = {"train_sampling_strategy": "group_by_length"} if STRATEGY else {"group_by_length": True}
REBALANCES = STRATEGY is not None and "batch_rebalance" in STRATEGY.metadata.get("choices", ())


def tiny_model(
    kind: str = "llama",
    *,
    lora: bool = True,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
) -> Any:
    set_seed(0)
    common = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2}
    common |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "llama":
        model: Any = LlamaForCausalLM(
            LlamaConfig(**common, intermediate_size=32, num_key_value_heads=1, attention_dropout=dropout)
        )
    elif kind == "phi":
        model = PhiForCausalLM(
            PhiConfig(
                **common, intermediate_size=32, resid_pdrop=dropout, embd_pdrop=dropout, attention_dropout=dropout
            )
        )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY, n_embd=16, n_layer=layers, n_head=2, n_positions=64, resid_pdrop=dropout,
                embd_pdrop=dropout, attn_pdrop=dropout, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            )
        )  # fmt: skip
    model = model.to(dtype)
    if lora:
        config = LoraConfig(
            r=4, lora_alpha=8, target_modules=[VALUES[kind]], lora_dropout=dropout, init_lora_weights=False,
            fan_in_fan_out=kind == "gpt2",
        )  # fmt: skip
        model = get_peft_model(model, config, autocast_adapter_dtype=False)
    return model


def mixture(count: int = 96, *, seed: int = 0, source: bool = True) -> Dataset:
    """Rows of 4 to 20 tokens, two or more of them a masked prompt; the last source is rare."""
    return copy(_mixture(count, seed, source))


@cache
def _mixture(count: int, seed: int, source: bool) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        length = int(torch.randint(4, 20, (1,), generator=generator))
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        masked = 1 + int(torch.randint(1, max(2, length // 2), (1,), generator=generator))
        row: dict[str, Any] = {"input_ids": ids, "labels": [-100] * masked + ids[masked:]}
        if source:
            row["source"] = SOURCES[3] if number % 16 == 5 else SOURCES[number % 3]
        rows.append(row)
    return Dataset.from_list(rows)


def held_out(count: int) -> dict[str, Dataset]:
    """Other rows, a set for each source."""
    rows = mixture(count, seed=5)
    numbers = {name: [number for number, source in enumerate(rows["source"]) if source == name] for name in SOURCES}
    return {name: rows.select(some) for name, some in numbers.items()}


class Collator:
    pad_token_id = 0

    def __call__(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)

        def padded(key: str, value: int) -> torch.Tensor:
            return torch.tensor([[*row[key], *[value] * (width - len(row[key]))] for row in rows])

        mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
        return {
            "input_ids": padded("input_ids", 0),
            "labels": padded("labels", -100),
            "attention_mask": torch.tensor(mask),
        }


def arguments(folder: Path | str, **settings: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    values = {"output_dir": str(folder), **defaults, **settings}
    return training_arguments(TrainingArguments, **values)


def trainer(
    folder: Path | str, model: Any = None, coreset: CoresetConfig | None = None, *, plain: bool = False, **settings: Any
) -> Any:
    """A CoresetTrainer, or with `plain` a Trainer, on the tiny mixture."""
    dataset = settings.pop("train_dataset", None)
    collator = settings.pop("data_collator", Collator())
    extra = settings.pop("extra", {})
    common = {
        "model": model if model is not None else tiny_model(),
        "args": arguments(folder, **settings),
        "train_dataset": dataset if dataset is not None else mixture(),
        "data_collator": collator,
        **extra,
    }
    if plain:
        return Trainer(**common)
    return CoresetTrainer(**common, coreset=coreset if coreset is not None else CoresetConfig())


def run(made: Any, **settings: Any) -> Any:
    made.train(**settings)
    return made


def weights(made: Any) -> dict[str, torch.Tensor]:
    model = made.accelerator.unwrap_model(made.model_wrapped)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


def resumed_at(step: int, whole: Path, made: Callable[[Path], Any]) -> tuple[Path, Any]:
    """A copy of a run's folder whose checkpoints end at a step, and the trainer of `made` that went on from there."""
    killed = whole.with_name(f"killed-{step}")
    shutil.copytree(whole, killed)
    for folder in killed.glob("checkpoint-*"):
        if int(folder.name.split("-")[1]) > step:
            shutil.rmtree(folder)
    return killed, run(made(killed), resume_from_checkpoint=True)
