"""A comparison's folder: its files, whose it is, and lines that are on the disk at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from corebatch.errors import ConfigError
from corebatch.files import write_json, write_text
from corebatch.record.folder_lock import LOCK, OWNER, owned

PLAN, TIMING, TUNING, RUNS, BEGUN = "plan.json", "timing.jsonl", "tuning.jsonl", "runs.jsonl", "comparison.json"
SUBSETS = "subsets.jsonl"
FREE = ("processes", "devices", "threads", "seeds", "advice", "smallest_effect")
"""Keys of the compare block that may differ when a comparison goes on."""


def begin(
    values: Mapping[str, Any],
    folder: Path,
    objectives: Mapping[str, str],
    *,
    what: str = "comparison",
    name: str = BEGUN,
) -> None:
    """Marks the folder as this comparison's (or this `what`'s, with a record of another `name`), or checks that it is.
    `values`: the config as it was read; `objectives`: what each arm trains for, in words. Raises ConfigError: it holds
    something else, or one with other settings."""
    record = folder / name
    if not record.exists():
        there = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name] * folder.exists()
        if set(there) - {LOCK, OWNER}:
            raise ConfigError(f"output_dir: {folder} holds something else than a {what}, and nothing is overwritten.")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(record, {"config": values, "objectives": objectives})
        return
    before = json.loads(record.read_text(encoding="utf-8"))["config"]
    now = json.loads(json.dumps(values, default=str))
    differ = [key for key in sorted({*before, *now}) if _fixed(key, before.get(key)) != _fixed(key, now.get(key))]
    if differ:
        found = "; ".join(f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in differ)
        raise ConfigError(f"output_dir: {folder} holds a {what} with other settings ({found}). Choose another folder.")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder for this comparison until it ends, however it ends. Raises ConfigError: another process holds
    it, or this one does already."""
    with owned(folder, again=False):
        yield


def _fixed(key: str, value: Any) -> Any:
    if key == "compare" and isinstance(value, Mapping):
        return {inner: value[inner] for inner in value if inner not in FREE}
    return None if key == "output_dir" else value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; one that a killed comparison did not finish is cut off."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    return [json.loads(line) for line in whole.splitlines() if line.strip()]


def append(path: Path, line: Mapping[str, Any]) -> None:
    """A line in one write."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, default=str) + "\n")
