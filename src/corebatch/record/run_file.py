"""`corebatch.json`: what a run is, and what a user should know of its sources."""

from __future__ import annotations

from typing import Any

from corebatch.record.provenance import commit_of_corebatch, commit_of_user, hardware, versions
from corebatch.sampling.tags import Sources

RUN = "corebatch.json"
RECORDED = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "max_steps", "num_train_epochs"),
    *("optim", "lr_scheduler_type", "warmup_steps", "weight_decay", "seed", "bf16", "fp16", "world_size"),
)
"""The training arguments that a record names."""


def describe(
    args: Any, coreset: dict[str, Any], model: Any, sources: Sources, small: frozenset[int], started: str
) -> dict[str, Any]:
    """The content of `corebatch.json`.

    Args:
        args: the TrainingArguments.
        coreset: plain values of the CoresetConfig.
        model: the model without its wrappers.
        sources: of the train set.
        small: the sources that are kept whole.
        started: when, in ISO 8601.
    """
    total = max(sum(sources.counts.values()), 1)
    found = versions()
    return {
        "corebatch": found.get("corebatch", "unknown"),
        "coreset": coreset,
        "training": {key: getattr(args, key) for key in RECORDED if hasattr(args, key)},
        "model": getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__,
        "sources": {
            sources.names[s]: {"examples": count, "share": count / total, "small": s in small}
            for s, count in sorted(sources.counts.items())
        },
        "method_note": kept_note(sources, small) if coreset["pool_factor"] > 1 else EVERY_ROW,
        "hardware": hardware(),
        "versions": found,
        "commit": commit_of_user(),
        "corebatch_commit": commit_of_corebatch(),
        "started": started,
    }


EVERY_ROW = "Every row that is drawn is trained."


def kept_note(sources: Sources, small: frozenset[int]) -> str:
    """Whether the mixture that is trained is the one that is drawn, in a sentence."""
    if not small:
        return "No source is kept whole: the mixture that is trained is the one that is drawn."
    kept = ", ".join(sources.names[s] for s in sorted(small))
    return f"Small sources are kept whole ({kept}), which changes the mixture that is trained."


def absent_note(sources: Sources, absent: list[str]) -> str:
    """That small sources are named which the data set does not have, in a sentence."""
    there = ", ".join(sorted(sources.names[s] for s in sources.counts))
    return f"coreset.small_sources names {', '.join(absent)}, which no example has. The sources are {there}."
