"""Which code a run was made with: the commit of the user's repository, and corebatch's own."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
SECONDS = 10
"""That git may take, on a slow disk for instance, before the commit counts as unknown."""


def commit_of_user() -> str | None:
    """The commit of the repository that the process works in, with "+" if its files have changes; None outside of
    one, or without git."""
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
    # A virtual environment may lie in somebody's repository, which does not track what is installed there.
    tracked = _git(PACKAGE, "ls-files", "--error-unmatch", Path(__file__).name, below="trainer")
    return None if tracked is None else _commit(PACKAGE)


@cache
def _commit(folder: Path) -> str | None:
    revision = _git(folder, "rev-parse", "--short=12", "HEAD")
    if revision is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return revision + ("+" if changed else "")


def _git(folder: Path, *arguments: str, below: str = ".") -> str | None:
    command = ["git", "--no-optional-locks", *arguments]  # a run should not lock somebody's index
    try:
        found = subprocess.run(command, cwd=folder / below, capture_output=True, text=True, check=True, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
