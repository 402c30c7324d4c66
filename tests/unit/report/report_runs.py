"""Hand-made run folders for the tests of the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

STEPS: list[dict[str, Any]] = [
    {
        "step": 1,
        "epoch": 0.5,
        "drawn": {"algebra": 6, "tiny": 2},
        "chosen": {"algebra": 2, "tiny": 2},
        "kept": ["tiny"],
        "pool_examples": 8,
        "chosen_examples": 4,
        "pool_loss": 2.0,
        "chosen_loss": 2.5,
        "train_loss": 2.25,
        "tokens_scored": 800,
        "tokens_trained": 400,
        "labels_scored": 300,
        "labels_trained": 150,
        "weight_max": 2.5,
        "effective_sample_size": 3.0,
        "ms": {"score": 500.0, "train": 1000.0, "select": 100.0},
        "memory_mb": {"score": 900.0, "train": 1200.0},
        "seconds": 12.0,
    },
    {
        "step": 2,
        "epoch": 1.0,
        "drawn": {"algebra": 8},
        "chosen": {"algebra": 4},
        "kept": [],
        "pool_examples": 8,
        "chosen_examples": 4,
        "pool_loss": 1.0,
        "chosen_loss": 1.5,
        "train_loss": None,
        "tokens_scored": 1200,
        "tokens_trained": 600,
        "labels_scored": 500,
        "labels_trained": 250,
        "weight_max": 1.5,
        "effective_sample_size": 3.5,
        "ms": {"score": 700.0, "train": 1600.0, "custom": 100.0},
        "memory_mb": {"score": 950.0, "train": 1100.0},
        "seconds": 14.5,
    },
]

INFO: dict[str, Any] = {
    "corebatch": "0.1.0",
    "commit": "abc1234",
    "coreset": {"pool_factor": 2, "scorer": "last_layer", "selector": "balanced"},
    "training": {"learning_rate": 0.001},
    "model": "small-llama",
    "sources": {
        "algebra": {"examples": 900, "share": 0.9, "small": False},
        "tiny": {"examples": 90, "share": 0.09, "small": True},
        "never": {"examples": 10, "share": 0.01, "small": True},
    },
    "dropped_rows": 3,
    "hardware": {"cpu": "two cores"},
    "versions": {"torch": "2.9"},
    "started": "2026-05-04T10:11:12",
    "method_note": "Weights undo the choice.",
}

STEPS_TODAY: list[dict[str, Any]] = [
    {
        **STEPS[0],
        "positions_scored": 1000,
        "positions_trained": 500,
        "padding_scored": 0.2,
        "padding_trained": 0.2,
        "mfu": 0.25,
        "reuse_mb": 12.5,
        "bytes_sent": {"features": 3 * 2**20, "rows": 2**20},
        "rows_moved": 1,
        "token_imbalance": 0.04,
        "scoring": "full",
        "weights": {"algebra": 3.0, "tiny": 1.0},
        "gradient_error": {
            "error": 0.4,
            "cosine": 0.95,
            "length": 1.1,
            "norm": 0.5,
            "random": {"error": 0.8, "cosine": 0.7, "length": 1.5},
        },
        "ms": {**STEPS[0]["ms"], "exchange": 200.0},  # 1.8 s in all
    },
    {
        **STEPS[1],
        "positions_scored": 2000,
        "positions_trained": None,
        "padding_scored": 0.4,
        "padding_trained": None,
        "mfu": 0.5,
        "reuse_mb": 10.0,
        "bytes_sent": {"features": 3 * 2**20, "rows": 0},
        "rows_moved": 0,
        "token_imbalance": 0.02,
        "scoring": "proxy",
        "weights": {"algebra": 4.0},
        "ms": {**STEPS[1]["ms"], "exchange": 300.0},  # 2.7 s in all
    },
]
"""The same run with what newer records tell besides."""

PEAK = {"value": 1.6e11, "how": "measured matmul float32"}

EXAMPLES: dict[str, Any] = {
    "last_step": 2,
    "steps": 2,
    "examples_drawn": 12,
    "draws": [1, 2],
    "never_chosen": 5,
    "never_chosen_by_chance": 4.5,
    "ranked_by": "rate",
    "most": [
        {"id": 7, "drawn": 2, "chosen": 2, "expected": 1.0, "weight": 0.51, "source": "algebra", "text": "Two & two"}
    ],
    "least": [{"id": 3, "drawn": 2, "chosen": 0, "expected": 1.0, "weight": None, "source": "tiny", "text": None}],
    "examples_in_data": 1000,
}

EVALUATION: dict[str, Any] = {
    "before": {"per_source": {"algebra": {"correct": 1, "total": 4, "low": 0.05, "high": 0.7}}},
    "after": {
        "per_source": {"algebra": {"correct": 3, "total": 4, "low": 0.3, "high": 0.95}},
        "overall": {"correct": 3, "total": 4},
    },
}


def write_run(folder: Path, steps: list[dict[str, Any]] | None = None, **files: Any) -> Path:
    """A run folder: `selection.jsonl`, and a JSON file for each keyword that is not None."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(step) + "\n" for step in (STEPS if steps is None else steps)]
    (folder / "selection.jsonl").write_text("".join(lines), encoding="utf-8")
    for name, value in {"corebatch": INFO, **files}.items():
        if value is not None:
            (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def long_run(count: int, sources: list[str]) -> list[dict[str, Any]]:
    """Steps of a run in which the first source is favoured."""
    steps = []
    for step in range(1, count + 1):
        drawn = {name: 4 + (step + i) % 3 for i, name in enumerate(sources)}
        chosen = {name: many // 2 + (i == 0) for i, (name, many) in enumerate(drawn.items())}
        loss = 1 + math.exp(-step / count * 4)
        steps.append(
            {
                **STEPS[0],
                "step": step,
                "drawn": drawn,
                "chosen": chosen,
                "kept": [],
                "weights": {name: many * 1.01 for name, many in chosen.items()},
                "pool_examples": sum(drawn.values()),
                "chosen_examples": sum(chosen.values()),
                "pool_loss": loss,
                "chosen_loss": loss + 0.1,
                "train_loss": loss + 0.01 * (step % 5),
                "seconds": 2.0 * step,
            }
        )
    return steps
