"""Small models, rows and trainers of the GPU check, and how far two runs are apart."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AttentionInterface,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from corebatch.optimizers import training_arguments
from corebatch.trainer import CoresetConfig, CoresetTrainer
from corebatch.types import IGNORED

VOCABULARY, SOURCES = 96, ("algebra", "geometry", "logic", "rare")
VARLEN = "flash_of_torch"
"""PyTorch's own flash attention over rows of unequal length, which needs no further package. Its name has "flash", by
which transformers and corebatch know that rows need no padding and no mask."""
UNTIMED = ("ms", "memory_mb", "mfu", "seconds")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, in which numbers.

    Attributes:
        precision: "float64" (GPT-2, whose norms are in float64 too), "float32", or "bfloat16" (autocast to it).
        attention: transformers' name, or VARLEN.
        settings: of TrainingArguments.
    """

    precision: str = "float32"
    attention: str = "sdpa"
    lora: bool = True
    dropout: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """Weights before and after training, the lines of its log, and the trainer."""

    start: dict[str, Tensor]
    weights: dict[str, Tensor]
    lines: list[dict[str, Any]]
    trainer: Any

    @property
    def chosen(self) -> list[list[int]]:
        return [line["chosen"] for line in self.lines]


def small_model(case: Case, device: str) -> Any:
    """Three blocks of width 64, the same weights on every device."""
    set_seed(0)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    double, values, rate = case.precision == "float64", "v_proj", case.dropout
    if double:
        values = "c_attn"
        config: Any = GPT2Config(
            vocab_size=VOCABULARY, n_embd=64, n_layer=3, n_head=4, n_positions=64, resid_pdrop=rate, embd_pdrop=rate,
            attn_pdrop=rate, attn_implementation=transformers_name(case.attention), **tokens,
        )  # fmt: skip
        model: Any = GPT2LMHeadModel(config).double()
    else:
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, attention_dropout=rate, attn_implementation=transformers_name(case.attention),
            **tokens,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    model.config.use_cache = False
    if case.attention == VARLEN:
        model.config._attn_implementation = VARLEN  # afterwards: from_config would look for the package flash_attn
    if case.lora:
        adapters = LoraConfig(
            r=4, lora_alpha=8, target_modules=[values], lora_dropout=rate, init_lora_weights=False,
            fan_in_fan_out=double,
        )  # fmt: skip
        model = get_peft_model(model, adapters, autocast_adapter_dtype=False)
    return model.to(device)


def transformers_name(attention: str) -> str:
    return "sdpa" if attention == VARLEN else attention


def small_rows(count: int = 96, longest: int = 40) -> Dataset:
    """Rows of 6 tokens or more, two or more of them a masked prompt; the last source is rare."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        length = int(torch.randint(6, longest + 1, (1,), generator=generator))
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        masked = 2 + int(torch.randint(0, length // 2 - 1, (1,), generator=generator))
        source = SOURCES[3] if number % 16 == 5 else SOURCES[number % 3]
        rows.append({"input_ids": ids, "labels": [IGNORED] * masked + ids[masked:], "source": source})
    return Dataset.from_list(rows)


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Padded on the right: LongTensor [B, T] each."""
    ids, labels = ([torch.as_tensor(row[key]) for row in rows] for key in ("input_ids", "labels"))
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
    }


def arguments(
    folder: Path | str, device: str, *, bf16: bool = False, checkpointing: bool = False, **settings: Any
) -> TrainingArguments:
    gpu = device == "cuda"
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 6, "learning_rate": 0.05,
        "optim": "sgd", "lr_scheduler_type": "constant", "logging_strategy": "no", "save_strategy": "no",
        "report_to": [], "disable_tqdm": True, "use_cpu": not gpu, "dataloader_pin_memory": gpu, "seed": 3,
        "bf16": bf16,
    }  # fmt: skip
    if checkpointing:  # transformers 5 renamed the two keys
        known = {each.name for each in fields(TrainingArguments)}
        name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
        settings |= {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    return training_arguments(TrainingArguments, output_dir=str(folder), **{**defaults, **settings})


def make_trainer(model: Any, args: TrainingArguments, rows: Any, coreset: CoresetConfig | None, **extra: Any) -> Any:
    """A CoresetTrainer, or without settings the plain Trainer."""
    common = {"model": model, "args": args, "train_dataset": rows, "data_collator": collate, **extra}
    made = Trainer(**common) if coreset is None else CoresetTrainer(**common, coreset=coreset)
    made.remove_callback(PrinterCallback)
    return made


def train(
    folder: Path, case: Case, coreset: CoresetConfig | None, device: str, *, resume: bool = False, **settings: Any
) -> Run:
    """Trains the small model on the small rows; `resume`: from the last checkpoint in the folder."""
    model = small_model(case, device)
    start = copied(model)
    args = arguments(folder, device, bf16=case.precision == "bfloat16", **{**case.settings, **settings})
    made = make_trainer(model, args, small_rows(), coreset)
    made.train(resume_from_checkpoint=True if resume else None)
    return Run(start, copied(model), read_log(folder), made)


def copied(model: Any) -> dict[str, Tensor]:
    """Its weights, on the host."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def read_log(folder: Path) -> list[dict[str, Any]]:
    path = folder / "selection.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def untimed(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in UNTIMED} for line in lines]


def same(one: Run, other: Run) -> bool:
    """Bit for bit."""
    return all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


def apart(one: Run, other: Run) -> float:
    """The largest difference of any weight, by the largest way that one of the first run's weights went."""
    moved = max(float((one.weights[key] - one.start[key]).abs().max()) for key in one.weights)
    return max(float((one.weights[key].double() - other.weights[key]).abs().max()) for key in one.weights) / moved


@contextmanager
def deterministic(strict: bool) -> Iterator[None]:
    """Algorithms that give the same bits again. Strict: an operation that has none is an error; without, those of
    attention are not asked for either, since PyTorch picks them in the strict mode alone."""
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# ---- attention over rows of unequal length ---------------------------------------------------------------------------


def register_varlen() -> None:
    """Makes VARLEN known to transformers."""
    AttentionInterface.register(VARLEN, varlen_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(VARLEN, _mask_as_it_is)


def _mask_as_it_is(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> Tensor | None:
    return attention_mask


def varlen_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """Causal attention within each row: of packed rows by `cu_seq_lens_q`, of padded ones by the mask.

    Args:
        query, key, value: [B, H, T, D], of keys and values perhaps fewer heads.
        attention_mask: [B, T], or None where nothing is padded.

    Returns:
        [B, T, H, D], zero at padding; no weights.
    """
    rows, heads, width, depth = query.shape
    kind = query.dtype
    if torch.is_autocast_enabled(query.device.type):
        kind = torch.get_autocast_dtype(query.device.type)
    flat = [
        each.repeat_interleave(heads // each.shape[1], dim=1).transpose(1, 2).reshape(rows * width, heads, depth)
        for each in (query.to(kind), key.to(kind), value.to(kind))
    ]
    kept = torch.ones(rows * width, dtype=torch.bool, device=query.device)
    if given.get("cu_seq_lens_q") is not None:
        ends = given["cu_seq_lens_q"]
    else:
        mask = kept.view(rows, width) if attention_mask is None else attention_mask.bool()
        kept, ends = mask.flatten(), torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).int()
    inside = each_row(*(part[kept] for part in flat), ends)
    out = torch.zeros_like(flat[0]).masked_scatter(kept[:, None, None], inside)
    return out.view(rows, width, heads, depth), None


def each_row(query: Tensor, key: Tensor, value: Tensor, ends: Tensor) -> Tensor:
    """Causal attention [L, H, D] within each of the rows that `ends` parts: PyTorch's flash kernel on a GPU, on a CPU
    its plain attention row by row."""
    if not query.is_cuda:
        parts = [part.split(ends.diff().tolist()) for part in (query, key, value)]
        outs = [
            scaled_dot_product_attention(*(part.transpose(0, 1)[None] for part in row), is_causal=True)[0]
            for row in zip(*parts, strict=True)
        ]
        return torch.cat([out.transpose(0, 1) for out in outs])
    from torch.nn.attention.varlen import varlen_attn  # from PyTorch 2.10

    new = "window_size" in inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if new else {"is_causal": True}
    most, kind = int(ends.diff().max()), query.dtype
    half = kind if kind.itemsize == 2 else torch.bfloat16  # the kernel takes no other
    return varlen_attn(query.to(half), key.to(half), value.to(half), ends, ends, most, most, **causal).to(kind)
