"""corebatch inside Ray Train: two CPU workers choose jointly, and train a tiny model on made data.

    pip install 'corebatch[ray]'
    python examples/ray_train.py runs/ray

Every worker builds the same data set; the Trainer gives each its own rows of it. Pass a data set with a length, not a
Ray data set: its loader hands out finished batches, whose rows have no ids.
"""

import sys
from pathlib import Path
from typing import Any

import ray.train
import torch
from datasets import Dataset
from ray.train.huggingface.transformers import RayTrainReportCallback, prepare_trainer
from ray.train.torch import TorchTrainer
from tokenizers import Tokenizer, models
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainingArguments,
    set_seed,
)

from corebatch.trainer import CoresetConfig, CoresetTrainer

WORDS, PAD = 64, 0


def sums(count: int = 256) -> Dataset:
    """Rows of two sources: the next word is the sum of the last two words, or their difference."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        source, sign = ("differences", -1) if number % 4 == 0 else ("sums", 1)
        words = torch.randint(1, WORDS, (2,), generator=generator).tolist()
        for _ in range(int(torch.randint(2, 12, (1,), generator=generator))):
            words.append(1 + (words[-1] + sign * words[-2]) % (WORDS - 1))
        rows.append({"input_ids": words, "labels": [-100, -100, *words[2:]], "source": source})
    return Dataset.from_list(rows)


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{number}": number for number in range(WORDS)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "w0")), pad_token=f"w{PAD}")


def train_on_worker(config: dict[str, Any]) -> None:
    """What each worker runs: a script like any other, and two lines for Ray."""
    set_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, pad_token_id=PAD, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    words = tokenizer()
    trainer = CoresetTrainer(
        model=model,
        args=TrainingArguments(
            config["folder"],
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            max_steps=config["steps"],
            save_steps=config["steps"],
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=sums(),
        data_collator=DataCollatorForSeq2Seq(words),
        processing_class=words,
        coreset=CoresetConfig(pool_factor=2),
    )
    trainer.add_callback(RayTrainReportCallback())  # hands each checkpoint to Ray, with the metrics of its step
    prepare_trainer(trainer).train()


def fit(folder: Path, *, workers: int = 2, steps: int = 6) -> ray.train.Result:
    """Trains on `workers` CPU workers; `folder` gets the usual files, and Ray's beside them in `folder`/ray."""
    trainer = TorchTrainer(
        train_on_worker,
        train_loop_config={"folder": str(folder.absolute()), "steps": steps},
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=False),
        run_config=ray.train.RunConfig(storage_path=str(folder.absolute() / "ray"), name="corebatch"),
    )
    return trainer.fit()


if __name__ == "__main__":
    result = fit(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/ray"))
    print(result.metrics)
