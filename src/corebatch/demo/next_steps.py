"""What comes after the demo: a config of the same training, and the commands that go on from it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import yaml

from corebatch.demo.mixture import MixtureFiles
from corebatch.demo.settings import DemoSettings
from corebatch.files import write_json, write_text

CONFIG, NEXT = "config.yaml", "next.json"
_LONGEST = 512
"""Tokens of a row: the demo's own are shorter than its `max_length`, and a user's need not be."""


def write_next(folder: Path, model: Path, files: MixtureFiles, settings: DemoSettings) -> list[dict[str, str]]:
    """Writes `config.yaml` and `next.json`, which the report ends with; returns the commands, each with what it does.

    Args:
        folder: of the demo.
        model: the folder that the model was loaded from.
    """
    config = {
        "model_name_or_path": str(model),
        "datasets": [{"path": str(files.train.resolve())}],
        "output_dir": f"{folder}-again",
        "separator": "",
        "max_length": _LONGEST,
        "lora_r": settings.lora_r,
        "lora_alpha": settings.lora_alpha,
        "lora_target_modules": list(settings.lora_target_modules),
        "per_device_train_batch_size": settings.train_batch_size,
        "max_steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(settings.warmup_steps, settings.steps // 2),
        "logging_steps": 5,
        "seed": settings.seed,
        "coreset": {"pool_factor": settings.pool_factor},
        "compare": {"arms": ["plain_small", "plain_large"], "seeds": 3},
    }
    said = "# The demo's training, as a config; for your own rows change datasets and output_dir.\n"
    write_text(folder / CONFIG, said + yaml.safe_dump(config, sort_keys=False))
    held_out, compared = json.dumps([str(files.heldout)]), f"{folder}-comparison"
    train = ["train", str(folder / CONFIG), "--datasets", "[YOUR.jsonl]", "--output_dir", "runs/mine"]
    compare = ["compare", str(folder / CONFIG), "--eval_datasets", held_out, "--output_dir", compared]
    commands = [
        _told("Train on your own rows: lines with messages, or with prompt and completion.", train),
        _told("Compare with plain training, tuned, over three seeds; hours on two cores.", compare),
    ]
    write_json(folder / NEXT, {"commands": commands})
    return commands


def _told(what: str, command: list[str]) -> dict[str, str]:
    return {"what": what, "command": shlex.join(["corebatch", *command])}
