"""Whether `output_dir` and the checkpoint to go on from are there, before data and model are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from corebatch.errors import CheckpointError
from corebatch.record.checkpoint import TRAINER_STATE, last_complete


def checkpoint_of(output_dir: Path, resume: Any, pool_factor: int) -> str:
    """The checkpoint that `train` would go on from.

    Raises:
        CheckpointError: there is none. With a pool_factor above 1, the trainer checks whether it is whole.
    """
    if pool_factor > 1:
        return str(last_complete(output_dir)) if resume is True else str(resume)
    folder = resume
    if resume is True:
        folder = get_last_checkpoint(str(output_dir)) if output_dir.is_dir() else None
    if folder is None or not (Path(folder) / TRAINER_STATE).is_file():
        raise CheckpointError(f"{folder or output_dir} should hold a checkpoint to resume from. Found none.")
    return str(folder)


def check_place(output_dir: Path) -> None:
    """Raises CheckpointError if `train` could not make or fill the folder; nothing is written to find out."""
    place = output_dir
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise CheckpointError(
            "output_dir should be a folder that can be written to, and this is checked before anything is trained. "
            f"Found that {output_dir} cannot be: {place} is {'not writable' if place.is_dir() else 'no folder'}."
        )
