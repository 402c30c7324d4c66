"""Fine-tunes by Unsloth on a GPU, choosing a quarter of each large batch. Written against Unsloth's code; not run.

    pip install unsloth 'corebatch[trl]'
    python examples/unsloth_train.py unsloth/Llama-3.2-1B-Instruct data/algebra.jsonl data/shapes.jsonl runs/unsloth

Each file has a line of `messages` for each conversation; its name is their source.
"""

import os
import sys
from pathlib import Path

# The model's own loss is compared with the cross-entropy of its logits, which Unsloth leaves out otherwise.
os.environ.setdefault("UNSLOTH_RETURN_LOGITS", "1")

from unsloth import FastLanguageModel  # isort: skip  # before TRL and transformers, which it changes
from datasets import concatenate_datasets, load_dataset
from trl import SFTConfig

from corebatch.trainer import CoresetConfig, CoresetSFTTrainer  # after Unsloth: a subclass of the Trainer that it made


def main(name: str, files: list[str], output: str) -> None:
    model, tokenizer = FastLanguageModel.from_pretrained(name, max_seq_length=2048, load_in_4bit=True)
    model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=32, use_gradient_checkpointing="unsloth")
    parts = [load_dataset("json", data_files=path, split="train") for path in files]
    named = [part.add_column("source", [Path(path).stem] * len(part)) for path, part in zip(files, parts, strict=True)]
    rows = concatenate_datasets(named).map(
        lambda row: {"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)}, remove_columns="messages"
    )
    trainer = CoresetSFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=rows,
        args=SFTConfig(
            output_dir=output,
            dataset_text_field="text",
            max_length=2048,
            packing=False,  # selection works on rows; padding_free of CoresetConfig packs what was chosen
            padding_free=False,  # None lets Unsloth switch it on
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            learning_rate=2e-4,
            num_train_epochs=1,
            logging_steps=10,
            report_to="none",
        ),
        coreset=CoresetConfig(pool_factor=4),
    )
    trainer.train()
    model.save_pretrained(output)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:-1], sys.argv[-1])
