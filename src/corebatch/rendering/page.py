"""Pages that need nothing else: no network, no script, no external font, so that they may be mailed or archived."""

from __future__ import annotations

import os
from pathlib import Path

from corebatch.errors import MissingExtraError

STYLE = Path(__file__).with_name("page.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def require_matplotlib() -> None:
    """Do nothing where matplotlib is installed, else say how to install it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        message = "The plots of the report need matplotlib: pip install 'corebatch[report]'"
        raise MissingExtraError(message) from error


def write(path: Path, text: str) -> Path:
    """Writes the text whole or not at all, and returns the path."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(text.encode("utf-8"))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
