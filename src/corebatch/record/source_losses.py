"""The training loss of each source over several steps, and the shares of sources, as the Trainer's log has them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from corebatch.step_line import StepLine

DIGITS = 6
_MLFLOW = {"mlflow", "dagshub"}


def logged_losses(steps: Sequence[StepLine], trackers: Collection[str]) -> dict[str, float]:
    """`loss/SOURCE` for each source with a known loss: the mean over the steps, by the tokens it is over.

    Args:
        trackers: as TrainingArguments names them: what a metric's name may hold depends on them.
    """
    sums: dict[str, list[float]] = {}
    for step in steps:
        for name, loss in (step.loss_by_source or {}).items():
            tokens = (step.loss_tokens or {})[name]
            whole = sums.setdefault(name, [0.0, 0.0])
            whole[0] += loss * tokens
            whole[1] += tokens
    means = {name: float(f"{loss / tokens:.{DIGITS}g}") for name, (loss, tokens) in sorted(sums.items())}
    return _keyed("loss", means, trackers)


def logged_shares(steps: Sequence[StepLine], trackers: Collection[str]) -> dict[str, float]:
    """`share/SOURCE` for each source of an online objective, of the last step; see `logged_losses`."""
    return _keyed("share", steps[-1].shares, trackers)


def _keyed(what: str, values: Mapping[str, float], trackers: Collection[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        key = f"{what}/{name}"
        key = key if _MLFLOW.isdisjoint(trackers) else _for_mlflow(key)
        while key in found:  # two names that a tracker makes one
            key += "_"
        found[key] = value
    return found


def _for_mlflow(key: str) -> str:
    """Letters, digits, and `_-. /:` alone, and no path that can be written shorter: MLflow refuses other names."""
    parts = (re.sub(r"[^\w\-. ]", "_", part) for part in key.split("/"))
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)
