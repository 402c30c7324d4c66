"""How a checkpoint is written so that a run may be killed at any moment.

In this order: the marker is taken off a folder that is overwritten; the Trainer writes its files, while its rotation
and its push to a hub are held back; selection's state; the marker; and only then older checkpoints are deleted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from corebatch.errors import CheckpointError
from corebatch.record.checkpoint import last_complete


class Saving:
    """What the Trainer's own saving is asked to leave to us while one checkpoint is written. `args`: the
    TrainingArguments."""

    def __init__(self, args: Any) -> None:
        self._args = args
        self._set = {"save_total_limit": args.save_total_limit, "push_to_hub": args.push_to_hub}
        self.failure: Exception | None = None

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """No rotation, no push."""
        self._args.save_total_limit, self._args.push_to_hub = None, False
        try:
            yield
        finally:
            self._restore()

    @contextmanager
    def model(self) -> Iterator[None]:
        """While the model is saved, and the arguments beside it, as they were set. A failure is kept: the Trainer
        may let ranks wait for each other next, so nobody may leave."""
        self._restore()
        try:
            yield
        except Exception as error:
            self.failure = error
        finally:
            self._args.save_total_limit, self._args.push_to_hub = None, False

    def _restore(self) -> None:
        for name, value in self._set.items():
            setattr(self._args, name, value)


def saving_failed(error: Exception, step: int, folder: Path) -> CheckpointError:
    """The error of a checkpoint that could not be written: the step, the path, the cause, and where to go on from."""
    return CheckpointError(
        f"At step {step}, {folder} could not be written: {type(error).__name__}: {error}. {_free(folder)}"
        f"{go_on_from(folder.parent)}"
    )


def log_failed(error: Exception, path: Path) -> CheckpointError:
    """The error of a record that could not be appended to."""
    return CheckpointError(
        f"{path} could not be written: {type(error).__name__}: {error}. {_free(path)}{go_on_from(path.parent)}"
    )


def go_on_from(run_dir: Path) -> str:
    """In a sentence, the checkpoint that a run which ends now goes on from."""
    try:
        return (
            f"The last complete checkpoint is {last_complete(run_dir)}: when the cause is mended, go on from it with "
            "resume_from_checkpoint=True."
        )
    except CheckpointError:
        return f"{run_dir} holds no complete checkpoint yet: when the cause is mended, start anew."


def _free(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.0f} MB are free there. "
    except OSError:
        return ""


def check_writable(folder: Path) -> None:
    """Makes the folder if need be, and writes a file into it that is taken away again. Raises CheckpointError: that
    does not work."""
    probe = folder / ".corebatch_probe.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(probe, "wb") as file:
                file.write(b"corebatch")
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"output_dir should be a folder that can be written to, and this is checked before anything is trained. "
            f"Found that {folder} cannot be: {type(error).__name__}: {error}."
        ) from error
