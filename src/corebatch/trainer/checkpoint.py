"""What a checkpoint holds beyond the Trainer's: the state of selection, and a marker that it is complete."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from corebatch.errors import CheckpointError
from corebatch.step import CoresetStep

if TYPE_CHECKING:
    from corebatch.trainer.pool_scoring import PoolScoring

TENSORS, MARKER = "corebatch_state.safetensors", "corebatch_state.json"


def write_text(path: Path, text: str) -> None:
    """Writes to a temporary name, then moves: a reader finds the old file or the new one, never half of one."""
    part = path.with_name(f".{path.name}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def save_state(
    folder: Path,
    step: CoresetStep,
    settings: dict[str, Any],
    global_step: int,
    scoring: PoolScoring | None = None,
) -> None:
    """Adds the selection's state to a checkpoint folder; the marker comes last and says that all is there."""
    tensors = {} if step.normalise is None else step.normalise.state_dict()
    part = folder / f".{TENSORS}.part"
    whole = {f"normalise.{key}": value for key, value in tensors.items()}
    whole |= {f"scoring.{key}": value for key, value in ({} if scoring is None else scoring.state_dict()).items()}
    save_file({key: value.contiguous() for key, value in whole.items()}, part)
    os.replace(part, folder / TENSORS)
    write_text(folder / MARKER, json.dumps({"global_step": global_step, "coreset": settings}, indent=1))


def load_state(folder: Path, step: CoresetStep, settings: dict[str, Any], scoring: PoolScoring | None = None) -> int:
    """Restores the selection's state from a checkpoint.

    Returns:
        The number of optimizer steps that it holds.

    Raises:
        CheckpointError: the checkpoint is missing or incomplete, was not written with corebatch, or with other
            settings.
    """
    if not (folder / MARKER).is_file():
        raise CheckpointError(
            f"{folder} should be a checkpoint written by corebatch. Found no {MARKER}: the save was cut off, or the "
            "checkpoint is another trainer's."
        )
    try:
        state = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        trainer_state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
        found, steps, trainer_steps = dict(state["coreset"]), int(state["global_step"]), trainer_state["global_step"]
    except Exception as error:
        raise CheckpointError(f"{folder} cannot be read: {type(error).__name__}: {error}") from error
    if steps != trainer_steps:
        raise CheckpointError(
            f"{folder} should be of one step. Found {steps} in {MARKER}, {trainer_steps} in trainer_state.json."
        )
    found, expected = _of_the_run(found), _of_the_run(json.loads(json.dumps(settings)))
    if found != expected:
        other = [key for key in sorted({*found, *expected}) if found.get(key) != expected.get(key)]
        raise CheckpointError(
            f"{folder} was written with other settings, so the run would not be the same: "
            + "; ".join(f"{key} was {found.get(key)!r} and is {expected.get(key)!r}" for key in other)
        )
    if step.normalise is not None:
        step.normalise.load_state_dict(_of(tensors, "normalise."))
    if scoring is not None:
        scoring.load_state_dict(_of(tensors, "scoring."))
    return steps


def _of_the_run(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that may change on the way: how scoring uses memory, as its error advises."""
    scoring = settings.get("scoring")
    if isinstance(scoring, dict):
        kept = {key: value for key, value in scoring.items() if key not in ("rows", "reuse_place", "reuse_gb")}
        settings = {**settings, "scoring": kept["way"] if kept.keys() == {"way"} else kept}
    return settings


def _of(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def last_complete(output_dir: Path) -> Path:
    """The checkpoint with the highest step that is complete.

    Raises:
        CheckpointError: there is none.
    """
    found = []
    for folder in output_dir.glob("checkpoint-*") if output_dir.is_dir() else []:
        number = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if number and (folder / MARKER).is_file():
            found.append((int(number.group(1)), folder))
    if not found:
        raise CheckpointError(f"{output_dir} should hold a complete checkpoint to resume from. Found none.")
    return max(found)[1]
