"""What scripts write into pages: tables between two markers, and the line that says where they come from."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def write_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- end of NAME -->`; both must be there."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(first)
    _, there, after = rest.partition(last)
    if not found or not there:
        raise SystemExit(f"{page}: expected the markers {first} and {last}.")
    new = page.with_suffix(".new")
    new.write_text(f"{before}{first}\n{text.strip()}\n{last}{after}", encoding="utf-8")
    new.replace(page)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    new.replace(path)


def provenance(seed: int) -> dict[str, Any]:
    """Seed, day, commit, hardware and versions of a measurement."""
    import torch

    from corebatch.record.provenance import commit_of_corebatch, versions

    code, found = commit_of_corebatch() or "", versions()
    return {
        "seed": seed,
        "date": time.strftime("%Y-%m-%d"),
        "commit": code[:10] + (" with changes" if code.endswith("+") else ""),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s), no GPU",
        "versions": f"torch {found['torch']}, transformers {found['transformers']}",
    }


def origin(line: dict[str, Any]) -> str:
    """`provenance` as the end of a sentence."""
    return f"seed {line['seed']}; {line['hardware']}; {line['versions']}; {line['date']}, commit {line['commit']}"
