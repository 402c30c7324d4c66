"""What `make seam` and `make hosts` share: whose code was tested, and their tables on a page."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def commit() -> str:
    """The short hash, with a + where files of src or tests differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "tests")
    return (git("rev-parse", "--short=7", "HEAD") or "unknown") + ("+" if changed else "")


def table(head: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [head, ["---"] * len(head), *([row[key] for key in head] for row in rows)]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def between(page: str, begin: str, end: str, text: str) -> str:
    """The page with another text between its two marks."""
    before, rest = page.split(begin)
    return before + begin + text + end + rest.split(end)[1]
