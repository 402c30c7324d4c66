"""Trains with several methods, on however many ranks it is started; rank 0 leaves weights and choices.

Usage: worker.py FOLDER, alone or under torch.distributed.run.
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch

from corebatch.trainer import CoresetConfig
from training import mixture, run, tiny_model, trainer, weights

CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
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
    "full_tied": (CoresetConfig(), {"lora": False, "kind": "gpt2"}),
    # gpt2's norms are in float64 like the model; float32 norms of weighted gradients differ in what is remembered
    "remembered": (CoresetConfig(scoring="remembered"), {"kind": "gpt2"}),
    "remembered_scored": (
        CoresetConfig(scoring={"way": "remembered", "unknown": "score", "max_age": 5}),
        {"kind": "gpt2", "lora": False},
    ),
    "every": (CoresetConfig(scoring={"way": "every", "steps": 3}), {"kind": "gpt2"}),
    "two_phase": (CoresetConfig(scoring={"way": "two_phase", "proxy": "norm"}, pool_factor=4), {"kind": "gpt2"}),
    "window": (CoresetConfig(scoring={"way": "window", "tokens": 6}), {}),
    "first_blocks": (CoresetConfig(scoring={"way": "first_blocks", "blocks": 1}), {}),
    "reuse": (CoresetConfig(scoring={"way": "full", "reuse": True}), CHECKPOINTING),
    "reuse_full": (
        CoresetConfig(scoring={"way": "full", "reuse": True}, padding_free=True),
        {**CHECKPOINTING, "kind": "gpt2", "lora": False},
    ),
    "padding_free": (CoresetConfig(padding_free=True), {}),
    # 35 rows: the last pool is short, and a loader of two ranks fills it up from the start
    "uneven": (CoresetConfig(), {"rows": 35, "num_train_epochs": 2, "max_steps": -1}),
    "uneven_random": (
        CoresetConfig(selector="random", pool_factor=3),
        {"rows": 35, "num_train_epochs": 2, "max_steps": -1},
    ),
    "uneven_remembered": (
        CoresetConfig(scoring={"way": "remembered", "unknown": "score"}, padding_free=True),
        {"rows": 35, "num_train_epochs": 3, "max_steps": -1, "kind": "gpt2"},
    ),
}
if wanted := os.environ.get("COREBATCH_METHODS"):  # fewer, for `make seam`
    METHODS = {name: METHODS[name] for name in wanted.split(",")}
STEPS = 8


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    for name, (coreset, settings) in METHODS.items():
        settings = dict(settings)
        lora, rows = settings.pop("lora", True), settings.pop("rows", 96)
        model = tiny_model(settings.pop("kind", "llama"), lora=lora, dtype=torch.float64)
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
            kept = ("drawn", "chosen", "pool_examples", "chosen_examples", "examples_scored", "labels_trained")
            kept += ("train_loss", "pool_loss", "reuse_mb")
            (folder / f"{name}.json").write_text(json.dumps([{key: line.get(key) for key in kept} for line in lines]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    if torch.distributed.is_initialized():
        # Gloo's and DDP's threads may abort a process that is taken down while they run: everybody is done first, the
        # trainers go while the group is there, and nothing is left to the interpreter's exit.
        torch.distributed.barrier()
        gc.collect()
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
