"""Full fine-tuning with one weight's gradient in memory at a time, and the update of a batch of 32 from 8.

An optimizer that steps inside backward frees each gradient at once, so it cannot accumulate micro-batches. corebatch
draws pool_factor x 8 rows for its one micro-batch and trains on those 8 whose weighted update is nearly theirs.

    python examples/optimizer_in_backward.py [OUTPUT_DIR]

Needs no hub and half a minute on a CPU: a small Llama with random weights learns to count in steps of its source.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments, set_seed

from corebatch.trainer import CoresetConfig, CoresetTrainer, OptimizerInBackward

NUMBERS = 64
RANGES = ((0, NUMBERS), (1, 5), (6, 20))  # of the first number, the step and the length


def rows(count: int = 800) -> Dataset:
    """Sequences that go up by 1 to 4, modulo NUMBERS; the source says by how much."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        start, by, length = (int(torch.randint(low, high, (1,), generator=generator)) for low, high in RANGES)
        ids = [(start + by * i) % NUMBERS for i in range(length)]
        made.append({"input_ids": ids, "labels": ids, "source": f"by {by}"})
    return Dataset.from_list(made)


def collate(batch: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in batch)
    short = [width - len(row["input_ids"]) for row in batch]
    return {
        "input_ids": torch.tensor([row["input_ids"] + [0] * n for row, n in zip(batch, short, strict=True)]),
        "labels": torch.tensor([row["labels"] + [-100] * n for row, n in zip(batch, short, strict=True)]),
        "attention_mask": torch.tensor([[1] * (width - n) + [0] * n for n in short]),
    }


def main(output_dir: str) -> float:
    """Trains; the mean training loss over the last ten steps."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=NUMBERS, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4
    )
    args = TrainingArguments(
        output_dir,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,  # a weight has moved when its gradient is freed
        max_steps=60,
        learning_rate=3e-3,
        warmup_steps=5,
        max_grad_norm=0,  # there is never a whole gradient to clip
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = CoresetTrainer(
        model=LlamaForCausalLM(config),
        args=args,
        train_dataset=rows(),
        data_collator=collate,
        optimizer_cls_and_kwargs=(OptimizerInBackward, {"optimizer": torch.optim.AdamW, "lr": args.learning_rate}),
        coreset=CoresetConfig(pool_factor=4),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]


if __name__ == "__main__":
    print(f"training loss over the last steps: {main((sys.argv[1:] or ['runs/in-backward'])[0]):.3f}")
