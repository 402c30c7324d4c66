"""A probe of `corebatch advise` on a tiny model and a tiny mixture of questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from corebatch.bench.advise.probe import Probe, make_probe
from corebatch.config.settings import settings_from
from folders import save_tiny_model

QUESTIONS = {"sums": 60, "names": 40, "stories": 20}


def advised_config(folder: Path, **keys: Any) -> dict[str, Any]:
    """A config of a tiny model and rows of 6 to 60 tokens, in a folder."""
    save_tiny_model(folder / "model")
    rows = [
        {"prompt": f"{source} {n}?", "completion": f"{n * 7 % 13} " * (1 + n % 9), "source": source}
        for source, count in QUESTIONS.items()
        for n in range(count)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model_name_or_path": str(folder / "model"),
        "datasets": [{"path": str(folder / "train.jsonl")}],
        "dataset_cache": False,
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "learning_rate": 5e-3,
        "use_cpu": True,
        "seed": 1,
        "coreset": {"pool_factor": 1},
        **keys,
    }


def tiny_probe(folder: Path, *, seconds: float = 200.0, **keys: Any) -> Probe:
    """A probe of such a config, with keys of it set otherwise."""
    return make_probe(settings_from(advised_config(folder, **keys), "the test"), seconds=seconds)
