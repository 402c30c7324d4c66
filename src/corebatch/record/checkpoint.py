"""What a checkpoint holds beyond the Trainer's: the state of selection, and a marker that it is complete.

The marker is written last. It lists every file of the folder with its size and hash, and says of which run the
checkpoint is.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor

from corebatch.batch.method import CoresetStep
from corebatch.errors import CheckpointError
from corebatch.files import replacing, sync, write_text
from corebatch.objective import LOSSES
from corebatch.record.checkpoint_files import CutOffError, check_contents, check_files, list_files
from corebatch.record.provenance import versions
from corebatch.record.run_identity import check_same_run, note_versions

if TYPE_CHECKING:
    from corebatch.batch.scoring import Scoring

logger = logging.getLogger(__name__)

TENSORS, MARKER = "corebatch_state.safetensors", "corebatch_state.json"
TRAINER_STATE = "trainer_state.json"


class Stateful(Protocol):
    """What has tensors for a checkpoint."""

    def state_dict(self) -> Mapping[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


# ---- writing -----------------------------------------------------------------------------------------------------


def save_state(
    folder: Path,
    step: CoresetStep,
    settings: dict[str, Any],
    global_step: int,
    scoring: Scoring | None = None,
    run: dict[str, Any] | None = None,
    others: Mapping[str, Stateful] | None = None,
) -> None:
    """Adds the selection's state to a checkpoint folder; the marker comes last and says that all is there. `run`: what
    `run_identity.describe_run` says; None where only settings are to be compared. `others`: what else has a state,
    by name."""
    unmark(folder)
    tensors = {} if step.normalise is None else step.normalise.state_dict()
    whole = {f"normalise.{key}": value for key, value in tensors.items()}
    if step.feedback is not None:
        whole |= {f"feedback.{key}": value for key, value in step.feedback.state_dict().items()}
    whole |= {f"scoring.{key}": value for key, value in ({} if scoring is None else scoring.state_dict()).items()}
    for name, other in (others or {}).items():
        whole |= {f"{name}.{key}": value for key, value in other.state_dict().items()}
    with replacing(folder / TENSORS) as part:
        save_file({key: value.contiguous() for key, value in whole.items()}, part)
    files = list_files(folder, MARKER)
    for name in files:
        sync(folder / name)  # a marker that outlives its files in a power failure would be a lie
    marker = {"global_step": global_step, "coreset": settings, "run": run, "versions": versions(), "files": files}
    marker |= {"random_every": step.random_every} if step.random_every else {}
    write_text(folder / MARKER, json.dumps(marker, indent=1))
    sync(folder.parent)


def unmark(folder: Path) -> None:
    """Takes the marker off a checkpoint that is about to be overwritten or deleted, if it has one."""
    if (folder / MARKER).exists():
        (folder / MARKER).unlink()
        sync(folder)


def rotate(run_dir: Path, current: Path, limit: int | None, best: str | None) -> None:
    """Deletes checkpoints until `limit` are left, as the Trainer does: never the current one nor the best.

    Incomplete ones go first, so that they push out no complete one; then those of later steps than the current one,
    which an earlier run left; then the oldest.

    Args:
        limit: the Trainer's save_total_limit; None or 0: all are kept.
        best: the path of the best model's checkpoint, or None.
    """
    if not limit or limit < 0:
        return
    here = int(current.name.removeprefix("checkpoint-"))
    folders = _checkpoints(run_dir)
    kept = {current.resolve()} | ({Path(best).resolve()} if best is not None else set())
    order = sorted(folders, key=lambda item: ((item[1] / MARKER).is_file(), item[0] <= here, item[0]))
    surplus = len(folders) - max(limit, sum(folder.resolve() in kept for _, folder in folders))
    for folder in [folder for _, folder in order if folder.resolve() not in kept][: max(surplus, 0)]:
        unmark(folder)  # first, so that a kill leaves nothing that looks complete
        shutil.rmtree(folder, ignore_errors=True)


# ---- reading -----------------------------------------------------------------------------------------------------


def load_state(
    folder: Path,
    step: CoresetStep,
    settings: dict[str, Any],
    scoring: Scoring | None = None,
    run: dict[str, Any] | None = None,
    hashes: bool = True,
    others: Mapping[str, Stateful] | None = None,
) -> int:
    """Restores the selection's state from a checkpoint.

    Args:
        run: what `run_identity.describe_run` says of the run that goes on; None: only settings are compared.
        hashes: whether the contents of all files are compared with their hashes; one process of a machine does it.
        others: what else has a state, by the name that it was saved under.

    Returns:
        The number of optimizer steps that it holds.

    Raises:
        CheckpointError: the checkpoint is missing or incomplete, a file is cut off or changed, it was not written with
            corebatch, or by a run with other settings, data or model; names an older checkpoint that is good.
    """
    try:
        state, tensors, steps = _read(folder, hashes=hashes, contents=run is not None)
    except CheckpointError as error:
        raise CheckpointError(f"{_sentence(error)} {_older(folder)}") from error
    _check_settings(folder, dict(state["coreset"]), json.loads(json.dumps(settings)))
    if (before := state.get("random_every", 0)) != step.random_every:
        raise CheckpointError(
            f"{folder} was written with rows drawn at random at every so-many-th step, {before} (0: at none), and "
            f"coreset.noise_scale {settings.get('noise_scale')!r} draws them at every {step.random_every}: the run "
            "would choose otherwise."
        )
    if run is not None:
        check_same_run(folder, state.get("run"), json.loads(json.dumps(run)))
        note_versions(folder, state.get("versions"))
    if step.normalise is not None:
        step.normalise.load_state_dict(_of(tensors, "normalise."))
    if step.feedback is not None:
        step.feedback.load_state_dict(_of(tensors, "feedback."))
    if scoring is not None:
        scoring.load_state_dict(_of(tensors, "scoring."))
    for name, other in (others or {}).items():
        other.load_state_dict(_of(tensors, f"{name}."))
    return steps


def _read(folder: Path, *, hashes: bool, contents: bool) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    """The marker, selection's tensors, and the number of steps; all that is read is checked first. `contents`: whether
    it is also checked that the Trainer can load the rest."""
    state = _read_marker(folder)
    try:
        check_files(folder, state["files"], marker=MARKER, hashes=hashes)
        trainer_state = json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
        dict(state["coreset"])
        steps, trainer_steps = int(state["global_step"]), trainer_state["global_step"]
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{folder} cannot be read: {type(error).__name__}: {error}") from error
    if steps != trainer_steps:
        raise CheckpointError(
            f"{folder} should be of one step. Found {steps} in {MARKER}, {trainer_steps} in {TRAINER_STATE}."
        )
    if contents:
        check_contents(folder, state["files"], marker=MARKER)
    return state, tensors, steps


def _older(folder: Path) -> str:
    """In a sentence, the good checkpoint before one that is not, for whoever wants to go on from that."""
    number = _number(folder)
    for at, other in reversed(_checkpoints(folder.parent)):
        if number is None or at >= number:
            continue
        try:
            _read(other, hashes=True, contents=True)
        except CheckpointError:
            continue
        return f"{other} before it is whole: to go on from there, give resume_from_checkpoint that path."
    return "There is no whole checkpoint before it."


def _sentence(error: Exception) -> str:
    return f"{str(error).rstrip('.')}."


def _check_settings(folder: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    was, now = (settings.get("micro_batches", "length") for settings in (found, expected))  # older ones were sorted
    if was != now:
        logger.warning(
            "%s was written with micro_batches %s, and the run goes on with %s: the same updates, but not bit for bit.",
            folder, was, now,
        )  # fmt: skip
    found, expected = _of_the_run(found), _of_the_run(expected)
    if found != expected:
        other = [key for key in sorted({*found, *expected}) if found.get(key) != expected.get(key)]
        raise CheckpointError(
            f"{folder} was written with other settings, so the run would not be the same: "
            + "; ".join(f"{key} was {found.get(key)!r} and is {expected.get(key)!r}" for key in other)
        )


def _read_marker(folder: Path) -> dict[str, Any]:
    if not (folder / MARKER).is_file():
        there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None
        holds = "no such folder" if there is None else f"no {MARKER}"
        raise CutOffError(
            f"{folder} should be a checkpoint written by corebatch. Found {holds}: the save was cut off, or the "
            "checkpoint is another trainer's."
        )
    try:
        state = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise TypeError(f"{MARKER} should hold an object. Found {type(state).__name__}.")
        return state
    except Exception as error:
        raise CheckpointError(f"{folder} cannot be read: {type(error).__name__}: {error}") from error


def _of_the_run(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that may change on the way: how scoring uses memory, as its error advises, and what
    is only measured, how rows are cut into micro-batches, which leaves the update as it is; with keys that checkpoints
    from before them lack."""
    free = ("track_error", "micro_batches", "loss_by_source", "noise_scale")
    claimed = dict.fromkeys(("weight_column", "source_tokens", "sampling", "replay", "by_length", "target"))
    before = {"leftovers": "random", "budget": "constant", "objective": LOSSES.get(settings.get("loss", "")), **claimed}
    settings = before | {key: value for key, value in settings.items() if key not in free}
    scoring = settings.get("scoring")
    if isinstance(scoring, dict):
        kept = {key: value for key, value in scoring.items() if key not in ("rows", "reuse_place", "reuse_gb")}
        settings = {**settings, "scoring": kept["way"] if kept.keys() == {"way"} else kept}
    return settings


def _of(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _number(folder: Path) -> int | None:
    """N of a folder named checkpoint-N."""
    found = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(found.group(1)) if found else None


def _checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """The folders named checkpoint-N with their steps, in order."""
    folders = output_dir.glob("checkpoint-*") if output_dir.is_dir() else []
    return sorted((number, each) for each in folders if (number := _number(each)) is not None and each.is_dir())


def last_complete(output_dir: Path) -> Path:
    """The checkpoint with the highest step that is complete, by the names and sizes of its files.

    One that was cut off is passed over, with a warning if it was complete once: so do a kill, a full disk and an
    unfinished copy leave it. One whose marker says what corebatch does not write is an error, and so are changed files
    when it is loaded: nothing but a hand or a bad disk does that. Raises CheckpointError: there is none; says what
    there is.
    """
    passed = []
    for _, folder in reversed(_checkpoints(output_dir)):
        try:
            check_files(folder, _read_marker(folder).get("files", {}), marker=MARKER, hashes=False)
        except CutOffError as error:
            passed.append((folder, _sentence(error)))
            continue
        except CheckpointError as error:
            raise CheckpointError(f"{_sentence(error)} {_older(folder)}") from error
        for other, reason in passed:
            if (other / MARKER).is_file():  # without one, the save was cut off: nothing to wonder at
                logger.warning("Going on from %s. %s", folder, reason)
        return folder
    reasons = " ".join(reason for _, reason in passed)
    raise CheckpointError(
        f"{output_dir} should hold a complete checkpoint to resume from. Found none. "
        + (reasons or "Start the run anew, without resume_from_checkpoint.")
    )
