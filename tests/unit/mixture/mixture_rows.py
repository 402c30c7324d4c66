"""Rows that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

WriteLines = Callable[..., Path]
"""write_jsonl(name, rows) -> path"""


def qa(count: int, **more: Any) -> list[dict[str, Any]]:
    """Rows of prompt and completion, each different."""
    return [{"prompt": f"what is {i}?", "completion": f"the answer {i}", **more} for i in range(count)]
