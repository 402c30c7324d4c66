"""With which code, on what machine and when something was trained or measured.

Code is the versions of packages, the commit of the user's repository, and corebatch's own.
"""

from __future__ import annotations

import datetime
import json
import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from corebatch.record.repository import Index, Repository, UnreadableError

PACKAGE = Path(__file__).parents[1]


def provenance() -> dict[str, Any]:
    """Hardware, versions, corebatch's commit and the time of a measurement."""
    return {"hardware": hardware(), "versions": versions(), "commit": commit_of_corebatch(), "time": now()}


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("corebatch", "torch", "transformers", "accelerate", "peft", "trl", "datasets", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The machine, in the words that a report shows."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_cores": psutil.cpu_count(logical=True),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()


def commit_of_user() -> str | None:
    """The commit of the repository that the process works in, with "+" if its files have changes and "?" if that
    cannot be told; None outside of one."""
    return _commit(Path.cwd())


def commit_of_corebatch() -> str | None:
    """The commit that this corebatch was installed from or lies in; None for a released package."""
    try:
        told = metadata.distribution("corebatch").read_text("direct_url.json")
        revision = json.loads(told or "{}").get("vcs_info", {}).get("commit_id")
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        revision = None
    if revision:
        return str(revision)[:12]
    return _commit_around(PACKAGE / "record" / Path(__file__).name)


@cache
def _commit_around(path: Path) -> str | None:
    # A virtual environment may lie in somebody's repository, which does not track what is installed there.
    return _commit(PACKAGE) if _tracked(path) else None


def _tracked(path: Path) -> bool:
    try:
        around, path = Repository.around(path.parent), path.resolve()
        return around is not None and Index.read(around.own / "index").tracks(path.relative_to(around.tree).as_posix())
    except (OSError, UnreadableError):
        return False


@cache
def _commit(folder: Path) -> str | None:
    try:
        around = Repository.around(folder)
        revision = None if around is None else around.head()
    except (OSError, UnreadableError):
        return None
    if around is None or revision is None:
        return None
    return revision[:12] + {True: "+", False: "", None: "?"}[around.changed()]
