"""Trains with several methods, on however many ranks it is started; rank 0 leaves weights and choices.

Usage: worker.py FOLDER, alone or under torch.distributed.run.
"""

import json
import os
import sys
from pathlib import Path

import torch

from corebatch.trainer import CoresetConfig
from training import mixture, run, tiny_model, trainer, weights

METHODS = {
    "recommended": (CoresetConfig(), {}),
    "quarter": (CoresetConfig(pool_factor=4), {}),
    "colm": (CoresetConfig.colm(), {}),
    "balanced": (CoresetConfig(selector="balanced"), {}),
    "importance": (CoresetConfig(scorer="tokens", selector="importance"), {}),
    "optimizer_scale": (CoresetConfig(normalise="optimizer"), {}),
    "small_kept": (CoresetConfig(small_sources="auto"), {}),
    "example_mean": (CoresetConfig(loss="example_mean"), {}),
    "random": (CoresetConfig(selector="random"), {}),
    "hard": (CoresetConfig(scorer="loss", selector="hard"), {}),
    "full_tied": (CoresetConfig(), {"lora": False}),
    # 35 rows: the last pool is short, and a loader of two ranks fills it up from the start
    "uneven": (CoresetConfig(), {"rows": 35, "num_train_epochs": 2, "max_steps": -1}),
    "uneven_random": (
        CoresetConfig(selector="random", pool_factor=3),
        {"rows": 35, "num_train_epochs": 2, "max_steps": -1},
    ),
}
STEPS = 8


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    for name, (coreset, settings) in METHODS.items():
        settings = dict(settings)
        lora, rows = settings.pop("lora", True), settings.pop("rows", 96)
        model = tiny_model("gpt2" if name == "full_tied" else "llama", lora=lora, dtype=torch.float64)
        made = trainer(
            folder / name,
            model,
            coreset,
            per_device_train_batch_size=4 // world,
            gradient_accumulation_steps=2,
            train_dataset=mixture(rows),
            optim="adamw_torch",
            ddp_backend="gloo" if world > 1 else None,
            **{"max_steps": STEPS, **settings},
        )
        run(made)
        if made.is_world_process_zero():
            torch.save(weights(made), folder / f"{name}.pt")
            lines = [json.loads(line) for line in (folder / name / "selection.jsonl").read_text().splitlines()]
            kept = ("drawn", "chosen", "pool_examples", "chosen_examples", "labels_trained", "train_loss", "pool_loss")
            (folder / f"{name}.json").write_text(json.dumps([{key: line[key] for key in kept} for line in lines]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
