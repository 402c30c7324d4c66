"""The files of a checkpoint: listed with their hashes when it is written, and compared before anything is loaded.

Hashes are XXH3's of 128 bits: they find what a disk, a copy or an editor changed, at the speed of memory (12 GB/s on a
core, where SHA-256 makes 1 to 2). Against somebody who means harm no hash beside the files helps; against code in them
it does that no pickle is loaded which names anything but tensors and plain values.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash

from corebatch.errors import CheckpointError

logger = logging.getLogger(__name__)

HASH = "xxh3_128"
HASHES: dict[str, Any] = {HASH: xxhash.xxh3_128, "sha256": hashlib.sha256}
"""By the key of a marker's entry; checkpoints of earlier versions have SHA-256 for two files and none for others."""
AT_ONCE = 2**24
SENTINEL = "checkpoint-is-incomplete.txt"
"""transformers' own mark while it saves at SIGTERM (`enable_jit_checkpoint`), which it takes away afterwards."""
_LOADED = re.compile(
    r"(pytorch_model|model|adapter_model).*\.(bin|safetensors|index\.json)|adapter_config\.json"
    r"|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state.*\.pth"
)
"""Names that the Trainer or peft loads where they find them."""
_PICKLED = re.compile(r"(pytorch_model|adapter_model).*\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state.*\.pth")
_NUMPY = {
    *("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct"),
    *("numpy.ndarray", "numpy.dtype", "numpy.dtypes.UInt32DType"),
}
"""What the Trainer allows in random states beside what PyTorch does."""


class CutOffError(CheckpointError):
    """A checkpoint is not whole: its save, or the copying of it, did not come to its end."""


def list_files(folder: Path, marker: str) -> dict[str, dict[str, Any]]:
    """Every file of a checkpoint but the marker, by its path in the folder, with its size in bytes and its hash."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (marker, SENTINEL) and not name.endswith(".part"):
            files[name] = {"size": path.stat().st_size, HASH: file_hash(path, HASH)}
    return files


def file_hash(path: Path, kind: str) -> str:
    """The hash of a file's content in hexadecimal, read piece by piece."""
    made = HASHES[kind]()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(AT_ONCE):
            made.update(piece)
    return str(made.hexdigest())


def check_files(folder: Path, files: Any, *, marker: str, hashes: bool) -> None:
    """Compares a checkpoint's files with what its marker says of them.

    Args:
        files: the marker's list.
        marker: its name, for errors.
        hashes: also the files' contents, which reads all of them; else names and sizes.

    Raises:
        CutOffError: files are missing, or shorter or longer than they were written; names up to four of them.
        CheckpointError: files were changed, or the marker is not as corebatch writes it.
    """
    if not isinstance(files, Mapping):
        raise CheckpointError(
            f"{folder} cannot be read: 'files' in {marker} should list files. Found {type(files).__name__}."
        )
    entries = {name: _entry(folder, marker, name, about) for name, about in files.items()}
    cut_off, changed = [], []
    for name, (size, kind, wanted) in entries.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found is None:
            cut_off.append(f"{name} is missing")
        elif found != size:
            cut_off.append(f"{name} should have {size} bytes and has {found}")
        elif hashes and kind is not None and file_hash(path, kind) != wanted:
            changed.append(f"{name} was changed after it was written")
    if wrong := cut_off + changed:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        kind_of_error = CheckpointError if changed else CutOffError
        raise kind_of_error(f"{folder} is damaged: " + "; ".join(wrong[:4]) + more)
    unhashed = [name for name, (_, kind, _) in entries.items() if kind is None]
    if hashes and unhashed:
        logger.warning(
            "%s was written by an earlier version: of %d files (%s) only the size is known and was compared.",
            *(folder, len(unhashed), ", ".join(unhashed[:4]) + (", ..." if len(unhashed) > 4 else "")),
        )


def _entry(folder: Path, marker: str, name: str, about: Any) -> tuple[int, str | None, Any]:
    """Size in bytes, kind of hash, hash. Raises CheckpointError: the entry has no size, or names a file outside of the
    folder."""
    size = about.get("size") if isinstance(about, Mapping) else None
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    if not isinstance(size, int) or not inside:
        raise CheckpointError(
            f"{folder} cannot be read: {marker} should say the size of each file of the checkpoint. Found {about!r} "
            f"for {name!r}."
        )
    kind = next((kind for kind in HASHES if kind in about), None)
    return size, kind, about.get(kind)


def check_contents(folder: Path, files: Mapping[str, Any], *, marker: str) -> None:
    """Looks for files that loading would read though the marker does not list them, and for pickles with code. Raises
    CheckpointError: names the file."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file():
            continue
        if _LOADED.fullmatch(path.name) and name not in files:
            raise CheckpointError(
                f"{folder} is damaged: {name} should not be there. {marker} does not list it, and it would be loaded."
            )
        if _PICKLED.fullmatch(path.name) and len(Path(name).parts) == 1:
            _check_pickle(path)


def _check_pickle(path: Path) -> None:
    """What it names is read, and nothing of it is run."""
    try:
        named = set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path))) - _NUMPY
    except Exception as error:
        text = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path} should be a file as torch.save writes it. Found {type(error).__name__}: {text}"
        ) from error
    if named:
        raise CheckpointError(
            f"{path} should hold tensors and plain values. Found a pickle that would call "
            f"{', '.join(sorted(named)[:4])}: it was not loaded."
        )
