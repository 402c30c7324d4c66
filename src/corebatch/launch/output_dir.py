"""What may be begun, gone on with, or begun anew in `output_dir`, by what lies there; all before data and model are
read."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from corebatch.errors import CheckpointError, ConfigError
from corebatch.record.checkpoint import MARKER, TRAINER_STATE, last_complete
from corebatch.record.folder_lock import LOCK, OWNER
from corebatch.record.run_file import RUN
from corebatch.record.step_log import LOG

FINISHED = "finished.json"
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_OURS = re.compile(
    r"corebatch\.json|(selection|chosen)(\.old-\d+)?\.jsonl|(examples|evaluation|finished)\.json|report\.html"
    r"|trainer_state\.json|(train|eval|all)_results\.json|\..+\.part|evaluation|runs"
)
"""Names of files and folders that a run leaves before its model is saved."""
_MODEL = re.compile(r"(adapter_model|model|pytorch_model)\S*\.(safetensors|bin)")


@dataclass(frozen=True, slots=True)
class Start:
    """How a run begins.

    Attributes:
        resume: what the trainer resumes from: a path, True for the last checkpoint, or None.
        removed: what an earlier run left that is taken away before training.
        told: a sentence for the user, or None.
    """

    resume: str | bool | None
    removed: tuple[Path, ...] = ()
    told: str | None = None

    def clear(self) -> None:
        """Takes away what is to go."""
        for path in self.removed:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Contents:
    """What lies in a folder.

    Attributes:
        checkpoint: the latest that is, or was, complete.
        model: the file of a trained model.
        foreign: the name of something that no run of corebatch leaves there.
        steps: how many the record has.
        ours: what a run left before its first checkpoint.
    """

    checkpoint: Path | None
    model: Path | None
    foreign: str | None
    steps: int
    ours: tuple[Path, ...]

    @classmethod
    def of(cls, folder: Path) -> Contents:
        there = sorted(folder.iterdir()) if folder.is_dir() else []
        there = [path for path in there if path.name not in (LOCK, OWNER)]
        selects = (folder / RUN).is_file()  # whose checkpoints have a marker once they are complete
        checkpoints = [path for path in there if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
        complete = [
            path
            for path in checkpoints
            if (path / MARKER).exists() or ((path / TRAINER_STATE).exists() and not selects)
        ]
        ours = tuple(path for path in there if _OURS.fullmatch(path.name) or path in checkpoints)
        log = folder / LOG
        return cls(
            checkpoint=max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None),
            model=next((path for path in there if _MODEL.fullmatch(path.name)), None),
            foreign=next((path.name for path in there if path not in ours), None),
            steps=log.read_bytes().count(b"\n") if log.is_file() else 0,
            ours=ours,
        )


def plan_start(output_dir: Path, resume: Any, overwrite: bool, *, was_there: bool | None = None) -> Start:
    """How the run begins; nothing is changed yet.

    Args:
        resume: the value of `resume_from_checkpoint`.
        overwrite: whether a run without a complete checkpoint may be begun anew.
        was_there: whether the folder was there before this run locked it; None: look now.

    Raises:
        ConfigError: the folder holds something that would be overwritten; the message says what, and what can be done.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"output_dir: {output_dir} is a file. Expected a folder.")
    found = Contents.of(output_dir)
    nothing_to_lose = found.checkpoint is None and found.model is None and found.foreign is None
    if resume:
        was_there = output_dir.is_dir() if was_there is None else was_there
        if resume is not True or not was_there or not nothing_to_lose:
            return Start(resume)
        told = f"{output_dir} holds no complete checkpoint to resume from: the run begins from the start."
        return Start(None, found.ours if overwrite else (), told)  # else the record that there is gets another name
    if not found.ours and found.foreign is None:
        return Start(None)
    begun = found.steps > 0 or any(_CHECKPOINT.match(path.name) for path in found.ours)
    if nothing_to_lose and (overwrite or not begun):
        what = f"a run of {found.steps} steps without a complete checkpoint" if begun else "a run that made no step"
        return Start(None, found.ours, f"{output_dir} holds {what}, which is begun anew.")
    raise ConfigError(_refusal(output_dir, found, overwrite))


def _refusal(output_dir: Path, found: Contents, overwrite: bool) -> str:
    begun = f"output_dir: {output_dir} is not empty, and nothing in it is overwritten"
    if overwrite:
        begun = f"overwrite: {output_dir} may be begun anew if it holds nothing but a run without a complete checkpoint"
    if found.checkpoint is not None:
        return (
            f"{begun}. Found {found.checkpoint.name}. Choose another folder, or go on from its last checkpoint with "
            "--resume_from_checkpoint true."
        )
    if found.model is not None:
        return f"{begun}. Found a trained model, {found.model.name}. Choose another folder, or move it away."
    if found.foreign is not None:
        return f"{begun}. Found {found.foreign}, which is no file of a run. Choose another folder."
    return (
        f"{begun}. Found a run of {found.steps} steps that ended before its first checkpoint was complete. Begin it "
        "anew with --overwrite true, or choose another folder."
    )


def checkpoint_of(output_dir: Path, resume: Any, *, takes_part: bool) -> str:
    """The checkpoint that `train` would go on from. Raises CheckpointError: there is none. Where corebatch takes
    part in a step, the trainer checks whether it is whole."""
    if takes_part:
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
